import type { Address } from "./dedup-database.ts";
import type { PackDirectory } from "./pack-directory.ts";

/** Rows of complete packs kept when no database takes them: about 10 MiB, far more than a pipeline holds at once. */
const RECENT_ROWS = 65_536;

/**
 * What a run has stored itself: the chunks of packs that are not complete yet, and without a database the latest of
 * the complete ones.
 */
export class RunRows {
  readonly #open = new Map<string, Address>();
  /** Oldest first. */
  readonly #recent = new Map<string, Address>();

  /** Rows in memory. */
  get size(): number {
    return this.#open.size + this.#recent.size;
  }

  lookup(id: Uint8Array): Address | undefined {
    const key = rowKey(id);
    return this.#open.get(key) ?? this.#recent.get(key);
  }

  remember(id: Uint8Array, pack: string, slot: number): void {
    this.#open.set(rowKey(id), { pack, slot });
  }

  /** @param keep true when nobody else knows the pack's rows: the latest ones then stay. */
  complete(directory: PackDirectory, keep: boolean): void {
    for (let slot = 0; slot < directory.slotCount; slot++) {
      const key = rowKey(directory.idAt(slot));
      const row = this.#open.get(key);
      if (row?.pack !== directory.pack) continue; // not remembered, or stored again in a later pack
      this.#open.delete(key);
      if (keep) this.#recent.set(key, row);
    }
    for (const oldest of this.#recent.keys()) {
      if (this.#recent.size <= RECENT_ROWS) break;
      this.#recent.delete(oldest);
    }
  }
}

function rowKey(id: Uint8Array): string {
  return Buffer.from(id.buffer, id.byteOffset, id.length).toString("latin1");
}
