export type Random = (below: number) => number;

/** Longer inputs than this are not made, bytes: they would only take longer. */
export const LENGTH_MAX = 512 * 1024;

const EXTREMES_32 = [
  0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff,
];
const EXTREMES_64 = [
  0n,
  1n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 32n,
  2n ** 46n,
  2n ** 53n - 1n,
  2n ** 53n,
  2n ** 63n,
  2n ** 64n - 1n,
];

/**
 * The input with one to a few changes of the kinds that break decoders: bits, fields of every width at their
 * extremes, cuts, parts twice, parts of others.
 *
 * @param others where spliced parts come from. The input itself is left alone.
 */
export function mutate(random: Random, input: Buffer, others: readonly Buffer[]): Buffer {
  let bytes: Buffer = Buffer.from(input);
  const times = random(3) === 0 ? 1 + random(8) : 1;
  for (let time = 0; time < times; time++) {
    bytes = MUTATIONS[random(MUTATIONS.length)]!(random, bytes, others);
  }
  return bytes.subarray(0, LENGTH_MAX);
}

type Mutation = (random: Random, bytes: Buffer, others: readonly Buffer[]) => Buffer;

const MUTATIONS: readonly Mutation[] = [
  (random, bytes) => {
    if (bytes.length > 0) bytes[random(bytes.length)]! ^= 1 << random(8);
    return bytes;
  },
  (random, bytes) => {
    if (bytes.length > 0)
      bytes[random(bytes.length)] = [0, 1, 0x7f, 0x80, 0xff, 0x22, 0x7b, random(256)][random(8)]!;
    return bytes;
  },
  (random, bytes) => setField(random, bytes, 2),
  (random, bytes) => setField(random, bytes, 4),
  (random, bytes) => setField(random, bytes, 4),
  (random, bytes) => setField(random, bytes, 8),
  nudge,
  (random, bytes) => bytes.subarray(0, random(bytes.length + 1)),
  (random, bytes) => bytes.subarray(random(Math.min(bytes.length, 32) + 1)),
  (random, bytes) => splice(random, bytes, part(random, bytes)), // a part of its own, twice
  (random, bytes, others) => splice(random, bytes, part(random, others[random(others.length)] ?? bytes)),
  (random, bytes) => splice(random, bytes, Buffer.alloc(random(64), random(256))),
  (random, bytes) => {
    const at = random(bytes.length + 1);
    return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + random(33))]);
  },
];

/** A whole number of so many bytes, either way round, becomes an extreme one. */
function setField(random: Random, bytes: Buffer, size: 2 | 4 | 8): Buffer {
  if (bytes.length < size) return bytes;
  const at = random(bytes.length - size + 1);
  const little = random(2) === 0;
  if (size === 8) {
    const value = EXTREMES_64[random(EXTREMES_64.length)]!;
    if (little) bytes.writeBigUInt64LE(value, at);
    else bytes.writeBigUInt64BE(value, at);
    return bytes;
  }
  const value =
    size === 2 ? EXTREMES_32[random(EXTREMES_32.length)]! & 0xffff : EXTREMES_32[random(EXTREMES_32.length)]!;
  if (little) bytes.writeUIntLE(value, at, size);
  else bytes.writeUIntBE(value, at, size);
  return bytes;
}

/** A field becomes a little more or less: past a limit by one. */
function nudge(random: Random, bytes: Buffer): Buffer {
  if (bytes.length < 4) return bytes;
  const at = random(bytes.length - 3);
  const step = [1, -1, 2, -2, 4, -4][random(6)]!;
  if (random(2) === 0) bytes.writeUInt32LE((bytes.readUInt32LE(at) + step) >>> 0, at);
  else bytes.writeUInt32BE((bytes.readUInt32BE(at) + step) >>> 0, at);
  return bytes;
}

function part(random: Random, from: Buffer): Buffer {
  const start = random(from.length + 1);
  return from.subarray(start, start + random(Math.min(4096, from.length - start) + 1));
}

/** The piece goes in, or over what is there. */
function splice(random: Random, bytes: Buffer, piece: Buffer): Buffer {
  const at = random(bytes.length + 1);
  const over = random(2) === 0 ? piece.length : 0;
  return Buffer.concat([bytes.subarray(0, at), piece, bytes.subarray(at + over)]);
}
