import { crc32 } from "node:zlib";
import { AppError, hasCode } from "../../errors.ts";
import { mapOrdered } from "../../flow/map-ordered.ts";
import type { Repository } from "../../repository/config.ts";
import { recordDamaged } from "../../repository/damaged.ts";
import { encodeForward, type Move } from "../../repository/forward.ts";
import { IndexWriter } from "../../repository/index-objects.ts";
import { forwardKey, newUuid, packKey } from "../../repository/names.ts";
import type { PackDirectory, PackRef } from "../../repository/pack-directory.ts";
import { type CompletedPack, PackWriter } from "../../repository/pack-writer.ts";
import { fetchStoredDirectory, type StoredDirectory } from "../../repository/stored-directory.ts";
import { SPAN_LIMITS, spans, type Span } from "../../restore/spans.ts";
import type { PackToMove } from "./candidates.ts";
import type { MoveGroup } from "./move-order.ts";

/** Ranged GETs under way at once, each of at most `SPAN_LIMITS.storedMax`. */
const GETS = 4;

/** Part buffers of the packs being uploaded. */
const PARTS = 4;

export interface RewriteReport {
  /** Old packs of which something was copied. */
  packs: number;
  /** Stored bytes of the blobs that were copied. */
  bytes: number;
  newPacks: number;
  forwards: number;
  /** Slots whose bytes are not what was stored; they stay where they are. */
  damaged: number;
}

/** A pack that is being copied. */
interface Moving extends StoredDirectory {
  /** Ascending by slot. */
  readonly moves: { readonly slot: number; readonly pack: string; readonly to: number }[];
}

/** A stretch of an old pack, as it was fetched; `stored` is undefined when the pack is gone. */
interface Fetched {
  readonly span: Span;
  readonly stored: Buffer | undefined;
}

/**
 * Copies blobs as they are stored (R16) into new packs, and writes the forwards that lead there, each once every new pack
 * that it names is complete (R11). Each group has new packs of its own, and an index object that lists them.
 *
 * Whatever was not finished when a run dies is new packs that nothing names, which the next prune collects; what was
 * finished is found by its forwards.
 *
 * @throws the run's first failure; uploads that are not complete have been dropped then.
 */
export async function rewritePacks(
  repository: Repository,
  groups: readonly MoveGroup[],
  warn: (message: string) => void,
  run: AbortController,
): Promise<RewriteReport> {
  const report: RewriteReport = { packs: 0, bytes: 0, newPacks: 0, forwards: 0, damaged: 0 };
  for (const group of groups) await new Rewriting(repository, group, report, warn, run).work();
  return report;
}

class Rewriting {
  readonly #repository: Repository;
  readonly #group: MoveGroup;
  readonly #report: RewriteReport;
  readonly #warn: (message: string) => void;
  readonly #run: AbortController;
  readonly #index: IndexWriter | undefined;
  readonly #writer: PackWriter;
  /** New packs that are complete. */
  readonly #complete = new Map<string, PackDirectory>();
  /** Copied, and waiting for their new packs. */
  readonly #waiting = new Set<Moving>();

  constructor(
    repository: Repository,
    group: MoveGroup,
    report: RewriteReport,
    warn: (message: string) => void,
    run: AbortController,
  ) {
    this.#repository = repository;
    this.#group = group;
    this.#report = report;
    this.#warn = warn;
    this.#run = run;
    if (group.source !== undefined) this.#index = new IndexWriter(repository, group.source);
    const onPack = (pack: CompletedPack): Promise<void> => this.#completed(pack);
    this.#writer = new PackWriter(repository, { partsInFlight: PARTS, onPack }, run);
  }

  async work(): Promise<void> {
    const { signal } = this.#run;
    try {
      for (const pack of this.#group.packs) await this.#copyPack(pack);
      await this.#writer.finish();
      await this.#settle();
      await this.#index?.flush(signal);
    } catch (error) {
      this.#run.abort(error);
      await this.#writer.abort();
      throw this.#run.signal.reason;
    }
  }

  async #copyPack({ packRef, slots }: PackToMove): Promise<void> {
    const { pack } = packRef;
    const old = await this.#openOld(packRef);
    if (old === undefined) return;
    const moving: Moving = { ...old, moves: [] };
    const wanted = spans({ packRef, slots, chunks: slots }, old.directory, SPAN_LIMITS);
    const fetched = mapOrdered(wanted, GETS, this.#run, (span, signal) => this.#fetch(span, signal));
    const damaged: number[] = [];
    for await (const { span, stored } of fetched) {
      if (stored === undefined) continue;
      for (const { slot } of span.blobs) {
        const at = old.directory.offsetOf(slot) - span.offset;
        const blob = stored.subarray(at, at + old.directory.storedLength(slot));
        if (crc32(blob) === old.directory.crc32(slot)) await this.#copyBlob(moving, slot, blob);
        else damaged.push(slot);
      }
    }
    if (damaged.length > 0) await this.#noteDamage(pack, damaged);
    if (moving.moves.length === 0) return;
    this.#report.packs++;
    this.#waiting.add(moving);
    await this.#settle();
  }

  /** The pack's directory, as the layers name it; undefined when it cannot be had, which is warned of. */
  async #openOld(packRef: PackRef): Promise<StoredDirectory | undefined> {
    const { pack } = packRef;
    try {
      const found = await fetchStoredDirectory(this.#repository, packRef, this.#run.signal);
      if (found !== undefined) return found;
      this.#warn(
        `The directory of pack ${pack} is damaged, so that it is left as it is; run blockhaul verify`,
      );
    } catch (error) {
      if (!(error instanceof AppError) || (error.kind !== "corrupt" && !hasCode(error, "E_NO_OBJECT")))
        throw error;
      this.#warn(`Pack ${pack} cannot be rewritten: ${error.message}; run blockhaul verify`);
    }
    return undefined;
  }

  async #fetch(span: Span, signal: AbortSignal): Promise<Fetched> {
    const stored = Buffer.allocUnsafe(span.length);
    try {
      await this.#repository.store.getRange(packKey(span.pack), span.offset, stored, signal);
      return { span, stored };
    } catch (error) {
      if (!hasCode(error, "E_NO_OBJECT")) throw error; // gone meanwhile: another prune was quicker
      return { span, stored: undefined };
    }
  }

  async #copyBlob(moving: Moving, slot: number, blob: Buffer): Promise<void> {
    const { directory, moves } = moving;
    const entry = {
      id: directory.idAt(slot),
      rawLength: directory.rawLength(slot),
      codec: directory.codec(slot),
      crc32: directory.crc32(slot),
    };
    const { pack, slot: to } = await this.#writer.append(blob, entry);
    moves.push({ slot, pack, to });
    this.#report.bytes += blob.length;
  }

  /** R12: known from now on, so that the next backups store those chunks again. */
  async #noteDamage(pack: string, slots: readonly number[]): Promise<void> {
    this.#report.damaged += slots.length;
    await recordDamaged(this.#repository, pack, slots, this.#run.signal);
    this.#warn(
      `Pack ${pack} is damaged at slot ${slots.join(", ")}: it stays, and the next backups store those chunks again`,
    );
  }

  async #completed(pack: CompletedPack): Promise<void> {
    this.#report.newPacks++;
    this.#complete.set(pack.pack, pack.directory);
    await this.#index?.add(pack, this.#run.signal);
    await this.#settle();
  }

  /** Writes the forwards of what has arrived as a whole. */
  async #settle(): Promise<void> {
    for (const moving of this.#waiting) {
      if (!moving.moves.every(({ pack }) => this.#complete.has(pack))) continue;
      this.#waiting.delete(moving); // before anybody else looks
      const moves = moving.moves.map(({ slot, pack, to }): Move => {
        const target = this.#complete.get(pack)!;
        if (!moving.directory.sameBlob(slot, target, to)) throw changed(moving.directory.pack, slot, pack);
        return { slot, target: target.ref, to };
      });
      await storeForward(this.#repository, moving, moves, this.#run.signal);
      this.#report.forwards++;
    }
  }
}

/** Stores a forward under a fresh name. */
export async function storeForward(
  repository: Repository,
  old: StoredDirectory,
  moves: readonly Move[],
  signal: AbortSignal,
): Promise<void> {
  const key = forwardKey(old.directory.pack, newUuid());
  await repository.store.put(key, encodeForward(repository, key, old, moves), signal);
}

function changed(pack: string, slot: number, target: string): AppError {
  const message = `Slot ${slot} of pack ${pack} is not what was copied to pack ${target}`;
  return new AppError("bug", "E_BLOB_CHANGED", message, { pack, slot });
}
