import { chunkCount, chunkLength } from "../../chunk/grid.ts";
import { AppError } from "../../errors.ts";
import { drain } from "../../flow/map-ordered.ts";
import { BlockCache } from "../../repository/block-cache.ts";
import type { Layer } from "../../repository/layer-object.ts";
import { openLayer } from "../../repository/layer-reader.ts";
import { DiskMap } from "../../repository/layer-stack.ts";
import { walkLayers } from "../../repository/layer-walk.ts";
import type { Manifest, ManifestDisk } from "../../repository/manifest.ts";
import type { PackDirectory, PackRef } from "../../repository/pack-directory.ts";
import type { ReadTools } from "../../repository/read-tools.ts";
import type { LayerRef } from "../../repository/layer-writer.ts";
import type { Losses } from "./losses.ts";
import { attempt, type Problems } from "./problems.ts";
import { usedPack, type UsedPacks } from "./used-packs.ts";

/** Slots of one pack that are bad. */
export interface BadSlots {
  has(slot: number): boolean;
}

/**
 * Walks the maps of generations: every layer is what the manifest names, to the last bit, and every address leads to a
 * slot of the right length in a pack whose directory is the one that the layer names.
 *
 * Where a layer is lost, what the layers above it say still counts; the rest of that disk is lost.
 */
export class MapCheck {
  readonly used: UsedPacks = new Map();
  /** Packs that are gone, or whose directory is not the one that was written. */
  readonly lostPacks = new Map<string, AppError>();
  readonly #tools: ReadTools;
  readonly #problems: Problems;
  readonly #losses: Losses;
  /** Generations share layers: each is read to the end once. */
  readonly #sound = new Set<string>();
  readonly #lost = new Map<string, AppError>();
  /** Layers of which only bytes are damaged that say nothing of the disk. */
  readonly #flawed = new Map<string, AppError>();
  /** How many layers from the top are sound, of the disks where not all are. */
  readonly #broken = new Map<string, number>();

  constructor(tools: ReadTools, problems: Problems, losses: Losses) {
    this.#tools = tools;
    this.#problems = problems;
    this.#losses = losses;
  }

  async disk(manifest: Manifest, disk: ManifestDisk, signal: AbortSignal): Promise<void> {
    const stack = await this.#soundLayers(manifest.generation, disk, signal);
    if (!stack.whole) this.#broken.set(diskKey(manifest, disk), stack.layers.length);
    await this.#walk(manifest, disk, stack, signal, (run) => this.#checkRun(manifest, disk, run, signal));
  }

  /**
   * Adds to the losses what lives in bad slots: a second walk, over the generations that use those packs only.
   * @param bad by pack.
   */
  async lose(
    manifests: readonly Manifest[],
    bad: ReadonlyMap<string, BadSlots>,
    signal: AbortSignal,
  ): Promise<void> {
    const hurt = new Set<string>();
    for (const pack of bad.keys())
      for (const generation of this.used.get(pack)?.generations ?? []) hurt.add(generation);
    for (const manifest of manifests.filter(({ generation }) => hurt.has(generation))) {
      for (const disk of manifest.disks) await this.#loseOfDisk(manifest, disk, bad, signal);
    }
  }

  async #loseOfDisk(
    manifest: Manifest,
    disk: ManifestDisk,
    bad: ReadonlyMap<string, BadSlots>,
    signal: AbortSignal,
  ): Promise<void> {
    const refs = disk.layers.slice(0, this.#broken.get(diskKey(manifest, disk)));
    const layers = await this.#problems.noting([manifest.generation], signal, () => {
      const cache = new BlockCache();
      return Promise.all(refs.map((ref) => openLayer(this.#tools.repository, ref, signal, cache)));
    });
    if (layers === undefined) return; // was sound a moment ago; has been noted
    const stack = { layers, whole: true }; // what is lost with a layer has been told
    await this.#walk(manifest, disk, stack, signal, ({ first, count, packRef, slot }) => {
      const slots = bad.get(packRef.pack);
      if (slots === undefined) return;
      for (let index = 0; index < count; index++) {
        if (slots.has(slot + index)) this.#losses.add(manifest, disk, first + index, 1);
      }
    });
  }

  /** The layers from the top down to the first one that is lost. */
  async #soundLayers(generation: string, disk: ManifestDisk, signal: AbortSignal): Promise<Stack> {
    const { repository } = this.#tools;
    const opened = await attempt(() => DiskMap.open(repository, disk, signal), signal);
    if (opened.damage?.code === "E_LAYER_STACK") {
      this.#problems.add(opened.damage, [generation]);
      return { layers: [], whole: false };
    }
    const layers: Layer[] = [];
    for (const [index, ref] of disk.layers.entries()) {
      const layer = await this.#soundLayer(ref, opened.value?.layers[index], signal);
      if (layer instanceof AppError) {
        this.#problems.add(layer, [generation]);
        return { layers, whole: false };
      }
      const flaw = this.#flawed.get(ref.layer);
      if (flaw !== undefined) this.#problems.add(flaw, [generation]);
      layers.push(layer);
    }
    return { layers, whole: true };
  }

  /** @param opened just now, if it is. @returns what is wrong with it, if anything. */
  async #soundLayer(
    ref: LayerRef,
    opened: Layer | undefined,
    signal: AbortSignal,
  ): Promise<Layer | AppError> {
    const lost = this.#lost.get(ref.layer);
    if (lost !== undefined) return lost;
    let layer = opened;
    const checked = await this.#problems.twice(async () => {
      const tried = layer ?? (await openLayer(this.#tools.repository, ref, signal));
      layer = undefined; // a second try begins anew
      if (!this.#sound.has(ref.layer)) await tried.verify(signal);
      return tried;
    }, signal);
    if (checked.damage === undefined) {
      this.#sound.add(ref.layer);
      return checked.value;
    }
    const legible = await attempt(() => this.#legible(ref, signal), signal);
    (legible.damage === undefined ? this.#flawed : this.#lost).set(ref.layer, checked.damage);
    if (legible.damage === undefined) this.#sound.add(ref.layer);
    return legible.value ?? checked.damage;
  }

  /** A layer all of whose runs and packs can be read, whatever else is wrong with it. */
  async #legible(ref: LayerRef, signal: AbortSignal): Promise<Layer> {
    const layer = await openLayer(this.#tools.repository, ref, signal);
    await drain(layer.runs(0, layer.chunks, signal));
    await drain(layer.packs(signal));
    return layer;
  }

  async #walk(
    manifest: Manifest,
    disk: ManifestDisk,
    { layers, whole }: Stack,
    signal: AbortSignal,
    work: (run: DataRun) => Promise<void> | void,
  ): Promise<void> {
    const chunks = chunkCount(disk.size, disk.chunkSize);
    let reached = 0;
    try {
      for await (const answer of walkLayers(layers, disk, 0, chunks, signal)) {
        const { first, count } = answer;
        if (answer.is === "data") {
          const packRef = await answer.layer.packOf(answer, signal);
          await work({ first, count, packRef, slot: answer.slot });
        } else if (answer.is === "nothing" && !whole) this.#losses.add(manifest, disk, first, count, true);
        reached = first + count;
      }
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
      this.#problems.add(error, [manifest.generation]);
      this.#losses.add(manifest, disk, reached, chunks - reached, true);
    }
  }

  async #checkRun(
    manifest: Manifest,
    disk: ManifestDisk,
    { first, count, packRef, slot }: DataRun,
    signal: AbortSignal,
  ): Promise<void> {
    const { generation } = manifest;
    const pack = usedPack(this.used, packRef);
    pack.generations.add(generation);
    const directory = await this.#directory(packRef, generation, signal);
    for (let index = 0; index < count; index++) {
      const [chunk, at] = [first + index, slot + index];
      if (
        directory === undefined ||
        directory.rawLength(at) === chunkLength(chunk, disk.size, disk.chunkSize)
      ) {
        pack.use(at);
        continue;
      }
      const message = `Chunk ${chunk} of disk ${disk.name} points at slot ${at} of pack ${packRef.pack}, which does not fit`;
      this.#problems.add({ message, code: "E_SLOT" }, [generation]);
      this.#losses.add(manifest, disk, chunk, 1);
    }
  }

  async #directory(
    packRef: PackRef,
    generation: string,
    signal: AbortSignal,
  ): Promise<PackDirectory | undefined> {
    const lost = this.lostPacks.get(packRef.pack);
    if (lost !== undefined) {
      this.#problems.add(lost, [generation]);
      return undefined;
    }
    const checked = await this.#problems.twice(() => this.#tools.directories.get(packRef, signal), signal);
    if (checked.damage === undefined) return checked.value;
    this.lostPacks.set(packRef.pack, checked.damage);
    this.#problems.add(checked.damage, [generation]);
    return undefined;
  }
}

interface Stack {
  /** Newest first. */
  readonly layers: readonly Layer[];
  /** False: a layer below these is lost, and what they do not mention with it. */
  readonly whole: boolean;
}

interface DataRun {
  readonly first: number;
  readonly count: number;
  readonly packRef: PackRef;
  readonly slot: number;
}

function diskKey({ generation }: Manifest, { name }: ManifestDisk): string {
  return `${generation}/${name}`;
}
