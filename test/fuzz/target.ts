import type { Random } from "./mutate.ts";

/** A decoder, and what it may be given. */
export interface FuzzTarget {
  readonly name: string;
  /** Inputs that are right, to be changed. */
  readonly seeds: readonly Buffer[];
  readonly mutate: (random: Random, input: Buffer, others: readonly Buffer[]) => Buffer;
  /**
   * Decodes the input all the way. What depends on chance, as where a stream is cut, takes `random`.
   *
   * @throws AppError of any kind but `bug` for what cannot be; anything else is a finding.
   */
  readonly decode: (input: Buffer, random: Random) => void | Promise<void>;
  /** The most that one input may have it allocate, bytes, in all: a small multiple of the format's own bound. */
  readonly allocatesMax: number;
}

/** What a decoder must never do was done. */
export class Broken extends Error {}
