/** Most bytes kept for later use: 16 requests of 256 KiB, twice. */
const KEPT_MAX = 8 * 1024 * 1024;
/** Shorter ones are not worth keeping, and would be too many. */
const LENGTH_MIN = 16 * 1024;

/**
 * Buffers of one connection that were used and can be used again. Requests mostly have one length, and fresh
 * memory costs more than filling it: a third of the server's processor time, measured with nbdcopy.
 */
export class SpareBuffers {
  readonly #byLength = new Map<number, Buffer[]>();
  #kept = 0;

  /** A buffer of exactly this length; it may hold what the connection read or wrote before. */
  take(length: number): Buffer {
    const spare = this.#byLength.get(length)?.pop();
    if (spare === undefined) return Buffer.allocUnsafeSlow(length);
    this.#kept -= length;
    return spare;
  }

  /** Gives a buffer back that nobody reads or fills any more. */
  give(buffer: Buffer): void {
    if (buffer.length < LENGTH_MIN) return;
    if (this.#kept + buffer.length > KEPT_MAX) {
      // Lengths that are no longer asked for must not be in the way for ever.
      this.#byLength.clear();
      this.#kept = 0;
      return;
    }
    this.#kept += buffer.length;
    const spares = this.#byLength.get(buffer.length);
    if (spares === undefined) this.#byLength.set(buffer.length, [buffer]);
    else spares.push(buffer);
  }
}
