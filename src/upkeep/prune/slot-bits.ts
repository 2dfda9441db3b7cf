/** Sets of a pack's slots: a bit a slot, the lowest of a byte first, as `PackMarks` has them. */

export function newBits(slotCount: number): Uint8Array {
  return new Uint8Array(Math.ceil(slotCount / 8));
}

export function hasBit(bits: Uint8Array, slot: number): boolean {
  return (bits[slot >> 3]! & (1 << (slot & 7))) !== 0;
}

export function setBit(bits: Uint8Array, slot: number): void {
  bits[slot >> 3]! |= 1 << (slot & 7);
}

/** The slots that are in the first set and not in the second, ascending. */
export function slotsWithout(bits: Uint8Array, others: Uint8Array | undefined): number[] {
  const slots: number[] = [];
  for (let at = 0; at < bits.length; at++) {
    const left = bits[at]! & ~(others?.[at] ?? 0);
    for (let bit = 0; left >> bit !== 0; bit++) if ((left & (1 << bit)) !== 0) slots.push(at * 8 + bit);
  }
  return slots;
}

/** True when every slot of the first set is in the second. */
export function isWithin(bits: Uint8Array, others: Uint8Array): boolean {
  return bits.every((byte, at) => (byte & ~others[at]!) === 0);
}
