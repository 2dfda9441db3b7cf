/** Bytes asked for at once, and in all, since `reset`. */
export interface Allocations {
  readonly largest: number;
  readonly total: number;
  reset(): void;
}

/**
 * Counts what is asked of `Buffer.alloc` and its kin, of `Buffer.concat`, and of typed arrays by length, from now on:
 * what a decoder allocates on a peer's word goes through them, also inside of Node's own zlib.
 */
export function countAllocations(): Allocations {
  const counts = { largest: 0, total: 0 };
  const count = (bytes: number): void => {
    counts.largest = Math.max(counts.largest, bytes);
    counts.total += bytes;
  };
  for (const name of ["alloc", "allocUnsafe", "allocUnsafeSlow"] as const) {
    const original = Buffer[name] as (size: number, ...rest: unknown[]) => Buffer;
    Buffer[name] = ((size: number, ...rest: unknown[]) => {
      count(size);
      return original.call(Buffer, size, ...rest);
    }) as typeof Buffer.alloc;
  }
  for (const name of [
    "Float64Array",
    "Uint32Array",
    "Uint16Array",
    "Uint8Array",
    "BigUint64Array",
    "ArrayBuffer",
  ] as const) {
    const original = globalThis[name] as unknown as new (...args: unknown[]) => { byteLength: number };
    const counted = new Proxy(original, {
      construct(target, args: unknown[], newTarget: new () => unknown): { byteLength: number } {
        const made: { byteLength: number } = Reflect.construct(target, args, newTarget);
        if (typeof args[0] === "number") count(made.byteLength);
        return made;
      },
    });
    Object.defineProperty(globalThis, name, { value: counted, configurable: true, writable: true });
  }
  return {
    get largest() {
      return counts.largest;
    },
    get total() {
      return counts.total;
    },
    reset: () => Object.assign(counts, { largest: 0, total: 0 }),
  };
}
