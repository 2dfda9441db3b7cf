import { drain, mapOrdered } from "../flow/map-ordered.ts";
import { readConfig, type RepositoryConfig } from "../repository/config.ts";
import { loadGenerations } from "../repository/generations.ts";
import type { LayerRef } from "../repository/layer-writer.ts";
import { parseKey, Prefix, type ObjectName } from "../repository/names.ts";
import { plainSealer } from "../repository/sealing.ts";
import type { ObjectInfo, ObjectStore } from "../store/store.ts";
import { coverageOf, scrubObject } from "./scrub/objects.ts";
import { scrubBuffer, scrubPack } from "./scrub/packs.ts";
import { Problems, type Problem } from "./verify/problems.ts";

/** Objects checked at once; for each a buffer of 4 MiB. */
const GETS = 6;

/** The packs of one of `of` equal parts, by their names; `number` from 1. */
export interface Part {
  readonly number: number;
  readonly of: number;
}

export interface ScrubRequest {
  readonly part: Part;
  /** Leaves the objects besides packs to another part's scrub. */
  readonly packsOnly?: boolean;
  /** Bytes of packs. */
  readonly progress: (done: number, total: number) => void;
}

export interface ScrubReport {
  readonly encrypted: boolean;
  readonly packs: number;
  readonly packsRead: number;
  /** Objects besides packs of which every byte was checked. */
  readonly objectsRead: number;
  /** Of packs. */
  readonly bytesRead: number;
  /** Objects that could not be checked, or only their beginning and end, by kind. */
  readonly unchecked: Readonly<Record<string, number>>;
  /** Objects that do not belong to a repository. */
  readonly foreign: number;
  readonly problems: readonly Problem[];
  readonly problemsLeftOut: number;
  /** Checks that failed once and went well the second time. */
  readonly transient: number;
}

/**
 * Checks without any key that stored bytes are what was stored: of packs, used or not, every byte; of other objects what
 * stands in the clear. What is missing is not noticed where it is a sealed object that names it.
 *
 * Memory is bounded: names are checked as they are listed.
 *
 * @throws AppError as `readConfig`.
 */
export async function scrub(
  store: ObjectStore,
  request: ScrubRequest,
  run: AbortController,
): Promise<ScrubReport> {
  const { config } = await readConfig(store, run.signal);
  const scrubber = new Scrubber(store, config, request);
  await scrubber.measure(run.signal);
  if (request.packsOnly !== true) await scrubber.readManifests(run.signal);
  const listed = store.list(request.packsOnly === true ? Prefix.packs : "", run.signal);
  await drain(mapOrdered(listed, GETS, run, (object, signal) => scrubber.check(object, signal)));
  return scrubber.report();
}

class Scrubber {
  readonly #store: ObjectStore;
  readonly #config: RepositoryConfig;
  readonly #request: ScrubRequest;
  readonly #problems = new Problems();
  /** What manifests say of layers, where they are not sealed. */
  readonly #layers = new Map<string, LayerRef>();
  readonly #buffers: Buffer[] = [];
  readonly #unchecked = new Map<string, number>();
  #bytesTotal = 0;
  readonly #counts = { packs: 0, packsRead: 0, objectsRead: 0, bytesRead: 0, foreign: 0 };

  constructor(store: ObjectStore, config: RepositoryConfig, request: ScrubRequest) {
    this.#store = store;
    this.#config = config;
    this.#request = request;
  }

  /** How much there is to read. */
  async measure(signal: AbortSignal): Promise<void> {
    for await (const { key, size } of this.#store.list(Prefix.packs, signal)) {
      const name = parseKey(key);
      if (name?.type === "pack" && isIn(this.#request.part, name.pack)) this.#bytesTotal += size;
    }
  }

  async readManifests(signal: AbortSignal): Promise<void> {
    if (this.#config.encrypted) return;
    const repository = { store: this.#store, config: this.#config, sealer: plainSealer() };
    const manifests = await loadGenerations(repository, undefined, signal, () => undefined); // told when it is listed
    for (const disk of manifests.flatMap(({ disks }) => disks)) {
      for (const ref of disk.layers) this.#layers.set(ref.layer, ref);
    }
  }

  async check(object: ObjectInfo, signal: AbortSignal): Promise<void> {
    const name = parseKey(object.key);
    if (name === undefined) this.#counts.foreign++;
    else if (name.type === "pack") await this.#checkPack(object.key, name.pack, signal);
    else await this.#checkObject(object, name, signal);
  }

  async #checkPack(key: string, pack: string, signal: AbortSignal): Promise<void> {
    this.#counts.packs++;
    if (!isIn(this.#request.part, pack)) return;
    const buffer = this.#buffers.pop() ?? scrubBuffer();
    try {
      const bytes = await this.#noting(key, signal, () =>
        scrubPack(this.#store, pack, this.#config.encrypted, buffer, signal),
      );
      this.#counts.packsRead++;
      this.#counts.bytesRead += bytes ?? 0;
    } finally {
      this.#buffers.push(buffer);
    }
    this.#request.progress(this.#counts.bytesRead, this.#bytesTotal);
  }

  async #checkObject(object: ObjectInfo, name: ObjectName, signal: AbortSignal): Promise<void> {
    const layerRef = name.type === "layer" ? this.#layers.get(name.layer) : undefined;
    const coverage = layerRef === undefined ? coverageOf(name.type, this.#config.encrypted) : "whole";
    if (coverage === "whole") this.#counts.objectsRead++;
    else this.#unchecked.set(name.type, (this.#unchecked.get(name.type) ?? 0) + 1);
    if (coverage === "listed" || name.type === "repository") return; // which has been read already
    await this.#noting(object.key, signal, () =>
      scrubObject(this.#store, this.#config, name, object, layerRef, signal),
    );
  }

  /** What was deleted since it was listed is no damage. */
  async #noting<T>(key: string, signal: AbortSignal, check: () => Promise<T>): Promise<T | undefined> {
    const { value, damage } = await this.#problems.twice(check, signal);
    if (damage === undefined) return value;
    if ((await this.#store.head(key, signal)) !== undefined) this.#problems.add(damage, []);
    return undefined;
  }

  report(): ScrubReport {
    return {
      encrypted: this.#config.encrypted,
      ...this.#counts,
      unchecked: Object.fromEntries(this.#unchecked),
      problems: this.#problems.list(() => true),
      problemsLeftOut: this.#problems.leftOut,
      transient: this.#problems.transient,
    };
  }
}

/** Names of packs are random, so parts are of nearly the same size. */
function isIn({ number, of }: Part, pack: string): boolean {
  return Number.parseInt(pack.slice(0, 8), 16) % of === number - 1;
}
