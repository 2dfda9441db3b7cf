import { randomBytes } from "node:crypto";
import { chunkCount } from "../../src/chunk/grid.ts";
import type { Repository } from "../../src/repository/config.ts";
import { storeStack } from "../../src/repository/layer-merge.ts";
import type { MappedDisk } from "../../src/repository/layer-stack.ts";
import { LayerWriter, type LayerRef } from "../../src/repository/layer-writer.ts";
import { newUuid } from "../../src/repository/names.ts";
import type { PackRef } from "../../src/repository/pack-directory.ts";
import { seeded } from "./layers.ts";

export interface SimulatedDisk {
  /** Bytes. */
  readonly size: number;
  readonly chunkSize: number;
  /** Incremental generations on top of the full one. */
  readonly incrementals: number;
  /** Dirty chunks of each of them, spread over the disk. */
  readonly dirtyChunks: number;
  /** Of 100 chunks of the full generation, those that are found in some other pack instead of following the last. */
  readonly duplicatePercent: number;
  readonly seed: number;
}

/**
 * Stores the layers of a disk that is full of data, as backups would have left them, without any blobs: a pack has
 * 180 to 500 slots, as 64 MiB of chunks of 256 KiB have that compress to a half or not at all.
 *
 * @param onGeneration told of the disk as each generation has it, oldest first.
 * @param onPack told of the name of each pack.
 */
export async function simulateDisk(
  repository: Repository,
  disk: SimulatedDisk,
  signal: AbortSignal,
  onGeneration: (disk: MappedDisk) => Promise<void> = () => Promise.resolve(),
  onPack: (pack: string) => void = () => undefined,
): Promise<MappedDisk> {
  const { size, chunkSize } = disk;
  const random = seeded(disk.seed);
  const packs = new SimulatedPacks(random, onPack);
  let layers: readonly LayerRef[] = [];
  for (let generation = 0; generation <= disk.incrementals; generation++) {
    const writer = new LayerWriter(size, chunkSize);
    if (generation === 0) fillAll(writer, disk, packs, random);
    else fillSome(writer, disk, packs, random);
    const parent = generation === 0 ? undefined : { size, layers };
    layers = await storeStack(repository, writer, (pack) => packs.ref(pack), parent, signal);
    await onGeneration({ name: "vda", size, chunkSize, layers });
  }
  return { name: "vda", size, chunkSize, layers };
}

function fillAll(
  writer: LayerWriter,
  disk: SimulatedDisk,
  packs: SimulatedPacks,
  random: (below: number) => number,
): void {
  const chunks = chunkCount(disk.size, disk.chunkSize);
  for (let chunk = 0; chunk < chunks; chunk++) {
    const duplicate = chunk > 0 && random(100) < disk.duplicatePercent;
    writer.add(chunk, 1, duplicate ? packs.any() : packs.next());
  }
}

function fillSome(
  writer: LayerWriter,
  disk: SimulatedDisk,
  packs: SimulatedPacks,
  random: (below: number) => number,
): void {
  const step = Math.floor(chunkCount(disk.size, disk.chunkSize) / disk.dirtyChunks);
  for (let dirty = 0; dirty < disk.dirtyChunks; dirty++) {
    writer.add(dirty * step + random(step), 1, random(10) === 0 ? "zero" : packs.next());
  }
}

class SimulatedPacks {
  readonly #random: (below: number) => number;
  readonly #onPack: (pack: string) => void;
  readonly #refs = new Map<string, PackRef>();
  readonly #complete: PackRef[] = [];
  #open: PackRef | undefined;
  #slot = 0;

  constructor(random: (below: number) => number, onPack: (pack: string) => void) {
    this.#random = random;
    this.#onPack = onPack;
  }

  ref(pack: string): PackRef {
    return this.#refs.get(pack)!;
  }

  /** The next slot of the pack that is being filled. */
  next(): { pack: string; slot: number } {
    if (this.#open === undefined || this.#slot === this.#open.slotCount) {
      const slotCount = 180 + this.#random(321);
      this.#open = { pack: newUuid(), digest: randomBytes(32), slotCount, blobBytes: slotCount * 150_000 };
      this.#refs.set(this.#open.pack, this.#open);
      this.#complete.push(this.#open);
      this.#onPack(this.#open.pack);
      this.#slot = 0;
    }
    return { pack: this.#open.pack, slot: this.#slot++ };
  }

  /** Some slot of some pack. */
  any(): { pack: string; slot: number } {
    const { pack, slotCount } = this.#complete[this.#random(this.#complete.length)]!;
    return { pack, slot: this.#random(slotCount) };
  }
}
