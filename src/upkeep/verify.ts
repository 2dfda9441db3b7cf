import { chunkCount, chunkLength } from "../chunk/grid.ts";
import { SlabPool } from "../chunk/slabs.ts";
import { AppError } from "../errors.ts";
import { drain, mapOrdered } from "../flow/map-ordered.ts";
import { DiskMap } from "../repository/layer-stack.ts";
import type { Manifest, ManifestDisk } from "../repository/manifest.ts";
import { packKey } from "../repository/names.ts";
import { checkPackHeader, PACK_HEADER_SIZE } from "../repository/pack.ts";
import type { PackRef } from "../repository/pack-directory.ts";
import { openSpan } from "../restore/open-span.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { GETS, SPAN_LIMITS, spans } from "../restore/spans.ts";

/** Something stored that is not what was stored. */
export interface Problem {
  readonly message: string;
  readonly code: string;
  /** Generations that need it, as far as known. */
  readonly generations: readonly string[];
}

export interface VerifyReport {
  readonly generations: number;
  readonly packs: number;
  /** Slots that the generations use, and how many of them were read and checked. */
  readonly chunks: number;
  readonly chunksRead: number;
  /** Stored bytes read. */
  readonly bytesRead: number;
  readonly problems: readonly Problem[];
}

/** Slots of a pack that some generation needs: a bit each. */
interface UsedPack {
  readonly packRef: PackRef;
  readonly slots: Uint8Array;
  readonly generations: Set<string>;
}

/**
 * Checks generations: manifest, layers and directories are the ones their digests name, every address leads to a
 * slot of the right length, and, for `readPercent` of the packs, every blob in use opens to bytes with the right id.
 *
 * A problem is noted and the rest is checked all the same.
 *
 * @param found what is wrong with generations that could not be loaded.
 * @param readPercent 0 to 100; packs are chosen at random.
 */
export async function verify(
  manifests: readonly Manifest[],
  found: readonly Problem[],
  readPercent: number,
  tools: ReadTools,
  run: AbortController,
  progress: (done: number, total: number) => void,
): Promise<VerifyReport> {
  const used = new Map<string, UsedPack>();
  const soundLayers = new Set<string>();
  const problems: Problem[] = [...found];
  for (const manifest of manifests) {
    for (const disk of manifest.disks) {
      await noting(problems, [manifest.generation], run.signal, () =>
        verifyMap(manifest.generation, disk, tools, { used, soundLayers, problems }, run.signal),
      );
    }
  }
  const packs = [...used.values()];
  for (const pack of packs) {
    if (!tools.directories.isGone(pack.packRef.pack)) continue;
    await noting(problems, [...pack.generations], run.signal, () => verifyMoved(pack, tools, run.signal));
  }
  const chosen = packs.filter(() => Math.random() * 100 < readPercent);
  const slabs = {
    stored: new SlabPool(SPAN_LIMITS.storedMax, GETS),
    raw: new SlabPool(SPAN_LIMITS.rawMax, GETS),
  };
  let done = 0;
  let chunksRead = 0;
  let bytesRead = 0;
  const reads = mapOrdered(chosen, GETS, run, async (pack, signal) => {
    await noting(problems, [...pack.generations], signal, () =>
      verifyHeader(pack.packRef.pack, tools, signal),
    );
    for (const span of await spansOf(pack, tools, signal)) {
      await noting(problems, [...pack.generations], signal, async () => {
        const opened = await openSpan(span, tools, slabs, signal);
        opened.slab.release();
        chunksRead += span.blobs.length;
        bytesRead += span.length;
      });
    }
    progress(++done, chosen.length);
  });
  await drain(reads);
  const chunks = packs.reduce((sum, pack) => sum + countBits(pack.slots), 0);
  return { generations: manifests.length, packs: packs.length, chunks, chunksRead, bytesRead, problems };
}

/** Runs a check; what is wrong with the repository is noted, everything else ends the run. @returns true: all is well. */
async function noting(
  problems: Problem[],
  generations: readonly string[],
  signal: AbortSignal,
  check: () => Promise<void>,
): Promise<boolean> {
  try {
    await check();
    return true;
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof AppError) || (error.kind !== "corrupt" && error.code !== "E_NO_OBJECT"))
      throw error;
    problems.push({ message: error.message, code: error.code, generations });
    return false;
  }
}

/** What is found while the maps are walked. */
interface Findings {
  readonly used: Map<string, UsedPack>;
  /** Generations share layers: each is read once. */
  readonly soundLayers: Set<string>;
  readonly problems: Problem[];
}

/** One disk's layers, to the last bit, and its addresses: every chunk's slot exists and is as long as the chunk. */
async function verifyMap(
  generation: string,
  disk: ManifestDisk,
  tools: ReadTools,
  { used, soundLayers, problems }: Findings,
  signal: AbortSignal,
): Promise<void> {
  const { size, chunkSize } = disk;
  const map = await DiskMap.open(tools.repository, disk, signal);
  for (const layer of map.layers) {
    if (soundLayers.has(layer.ref.layer)) continue;
    if (!(await noting(problems, [generation], signal, () => layer.verify(signal)))) return;
    soundLayers.add(layer.ref.layer);
  }
  const lost = new Set<string>();
  for await (const run of map.runs(0, chunkCount(size, chunkSize), signal)) {
    if (run.where === "zero" || lost.has(run.where.packRef.pack)) continue;
    const { packRef, slot } = run.where;
    const sound = await noting(problems, [generation], signal, async () => {
      const directory = await tools.directories.get(packRef, signal);
      const pack = usedPack(used, packRef, generation);
      for (let index = 0; index < run.count; index++) {
        const at = slot + index;
        const chunk = run.first + index;
        if (at >= packRef.slotCount || directory.rawLength(at) !== chunkLength(chunk, size, chunkSize)) {
          throw new AppError(
            "corrupt",
            "E_SLOT",
            `Chunk ${chunk} of disk ${disk.name} points at slot ${at} of pack ${packRef.pack}, which does not fit`,
          );
        }
        pack.slots[at >> 3]! |= 1 << (at & 7);
      }
    });
    if (!sound) lost.add(packRef.pack); // once a pack is enough
  }
}

/** Every slot in use of a pack that was rewritten lies somewhere else by now, and is the same there. */
async function verifyMoved(
  { packRef, slots }: UsedPack,
  { directories }: ReadTools,
  signal: AbortSignal,
): Promise<void> {
  await directories.places(packRef, slotsIn(slots, packRef.slotCount), signal);
}

/** No restore needs a pack's first bytes, but whoever finds the object by itself does. */
async function verifyHeader(pack: string, tools: ReadTools, signal: AbortSignal): Promise<void> {
  const { repository, directories } = tools;
  if (directories.isGone(pack)) return; // rewritten: nothing of it is left
  const header = Buffer.alloc(PACK_HEADER_SIZE);
  await repository.store.getRange(packKey(pack), 0, header, signal);
  checkPackHeader(header, repository.config.encrypted, pack);
}

function usedPack(used: Map<string, UsedPack>, packRef: PackRef, generation: string): UsedPack {
  let pack = used.get(packRef.pack);
  if (pack === undefined) {
    pack = { packRef, slots: new Uint8Array(Math.ceil(packRef.slotCount / 8)), generations: new Set() };
    used.set(packRef.pack, pack);
  }
  pack.generations.add(generation);
  return pack;
}

async function spansOf(
  pack: UsedPack,
  tools: ReadTools,
  signal: AbortSignal,
): Promise<ReturnType<typeof spanList>> {
  return spanList(pack, await tools.directories.get(pack.packRef, signal));
}

function spanList(pack: UsedPack, directory: Parameters<typeof spans>[1]): Parameters<typeof openSpan>[0][] {
  const slots = slotsIn(pack.slots, pack.packRef.slotCount);
  return [...spans({ packRef: pack.packRef, slots, chunks: slots }, directory, SPAN_LIMITS)];
}

function slotsIn(bits: Uint8Array, slotCount: number): number[] {
  const slots: number[] = [];
  for (let slot = 0; slot < slotCount; slot++) {
    if ((bits[slot >> 3]! & (1 << (slot & 7))) !== 0) slots.push(slot);
  }
  return slots;
}

function countBits(bits: Uint8Array): number {
  let count = 0;
  for (let byte of bits) for (; byte !== 0; byte &= byte - 1) count++;
  return count;
}
