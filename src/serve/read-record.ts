import { PROFILE_CHUNKS_MAX, type Profile } from "../repository/profiles.ts";

/** Which chunks of served disks were read, each once, in the order of their first read; up to a bound. */
export class ReadRecord {
  readonly #disks = new Map<string, { readonly number: number; readonly seen: Set<number> }>();
  readonly #reads: { readonly disk: number; readonly first: number; count: number }[] = [];
  #chunks = 0;
  #isFull = false;

  get chunks(): number {
    return this.#chunks;
  }

  /** More was read than a profile can hold. */
  get isFull(): boolean {
    return this.#isFull;
  }

  note(name: string, chunk: number): void {
    if (this.#isFull) return;
    let disk = this.#disks.get(name);
    if (disk === undefined) this.#disks.set(name, (disk = { number: this.#disks.size, seen: new Set() }));
    if (disk.seen.has(chunk)) return;
    if (this.#chunks === PROFILE_CHUNKS_MAX) {
      this.#isFull = true;
      return;
    }
    disk.seen.add(chunk);
    this.#chunks++;
    const last = this.#reads.at(-1);
    if (last?.disk === disk.number && last.first + last.count === chunk) last.count++;
    else this.#reads.push({ disk: disk.number, first: chunk, count: 1 });
  }

  /** @returns what a profile holds of it; at least one chunk was read. */
  content(): Pick<Profile, "disks" | "reads"> {
    return {
      disks: [...this.#disks.keys()],
      reads: this.#reads.map(({ disk, first, count }) => [disk, first, count] as const),
    };
  }
}
