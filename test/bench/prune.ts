import { randomBytes } from "node:crypto";
import { mkdirSync, utimesSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { formatSize, KiB, MiB, TiB } from "../../src/bytes/size.ts";
import { chunkCount } from "../../src/chunk/grid.ts";
import { createRepository, type Repository } from "../../src/repository/config.ts";
import { commitGeneration } from "../../src/repository/generations.ts";
import type { MappedDisk } from "../../src/repository/layer-stack.ts";
import { LayerWriter, storeLayer } from "../../src/repository/layer-writer.ts";
import { newUuid } from "../../src/repository/names.ts";
import type { PackRef } from "../../src/repository/pack-directory.ts";
import { DirectoryStore } from "../../src/store/directory.ts";
import type { PruneReport } from "../../src/upkeep/prune/prune-report.ts";
import { testManifest } from "../support/manifests.ts";
import { simulateDisk } from "../support/simulated-disk.ts";
import { atMost, type Finding, inFolder, measure, note } from "./harness.ts";

const PROCESS = resolve(import.meta.dirname, "prune-process.js");
const RSS_BAR = 300 * MiB;
const GETS_BAR = 4;
const CHUNK = 256 * KiB;
const HOUR_MS = 3_600_000;

/** A pack that takes no room. */
const EMPTY = Buffer.alloc(0);

type Measured = PruneReport & {
  readonly sent: Readonly<Record<"get" | "list" | "write", number>>;
  readonly peakRssBytes: number;
};

/** What a prune takes where only the maps are real: no blobs, packs without content. */
export async function pruneMemory(): Promise<Finding[]> {
  return inFolder(async (folder) => [
    ...(await judge(join(folder, "many"), "1,000 generations of 10 TiB", manyGenerations, RSS_BAR)),
    ...(await judge(join(folder, "large"), "100 TiB", hundredTebibytes, undefined)),
  ]);
}

async function judge(
  location: string,
  name: string,
  fill: (repository: Repository, packs: Packs) => Promise<number>,
  bar: number | undefined,
): Promise<Finding[]> {
  mkdirSync(location);
  const repository = await createRepository(new DirectoryStore(location), {}, new AbortController().signal);
  const packs = new Packs(location);
  const generations = await fill(repository, packs);
  repository.store.close();
  const dead = 1000 + Math.ceil(packs.count / 10);
  for (let more = 0; more < dead; more++) packs.add(newUuid());
  const { stdout, seconds } = await measure({ program: process.execPath, args: [PROCESS, location] });
  const report = JSON.parse(stdout) as Measured;
  const right =
    report.generations === generations &&
    report.live.packs === packs.count - dead &&
    report.condemned.packs === dead;
  if (!right) throw new Error(`the prune did not find what is there: ${stdout}`);
  const { sent, layersRead, peakRssBytes } = report;
  const peak = `${name}: peak RSS, Node included`;
  // a layer of up to 1 MiB takes one; larger ones one a segment of up to 65,536 runs, and one a page of 4,096 packs
  const gets = sent.get / (layersRead + 2 * generations);
  return [
    ...(bar === undefined
      ? [note(peak, formatSize(peakRssBytes))]
      : [
          atMost(peak, peakRssBytes, bar, formatSize),
          atMost("its GETs for each layer and manifest", gets, GETS_BAR, (n) => n.toFixed(2)),
        ]),
    note("layers, packs", `${layersRead}, ${packs.count}`),
    note("GET, LIST, others", `${sent.get}, ${sent.list}, ${sent.write}`),
    note("time", `${seconds.toFixed(1)} s`),
  ];
}

/** Packs of a while ago, in the directory of a repository. */
class Packs {
  count = 0;
  readonly #folder: string;

  constructor(location: string) {
    this.#folder = join(location, "packs");
    mkdirSync(this.#folder, { recursive: true });
  }

  add(pack: string): void {
    const path = join(this.#folder, pack);
    const before = new Date(Date.now() - 100 * HOUR_MS);
    writeFileSync(path, EMPTY);
    utimesSync(path, before, before);
    this.count++;
  }
}

/** Ten sources of 1 TiB, a hundred generations each, of which every incremental changes 500 MiB. */
async function manyGenerations(repository: Repository, packs: Packs): Promise<number> {
  const { signal } = new AbortController();
  let made = 0;
  for (let seed = 0; seed < 10; seed++) {
    const source = `vm${seed}`;
    let sequence = 0;
    const shape = {
      size: TiB,
      chunkSize: CHUNK,
      incrementals: 99,
      dirtyChunks: 2000,
      duplicatePercent: 2,
      seed,
    };
    await simulateDisk(
      repository,
      shape,
      signal,
      async (disk) => {
        await commitDisk(repository, source, ++sequence, disk, signal);
        made++;
      },
      (pack) => packs.add(pack),
    );
  }
  return made;
}

/**
 * Two disks of 50 TiB, each as its full backup leaves it. Their packs are not there: what a directory takes to list 800,000
 * files is not asked here.
 */
async function hundredTebibytes(repository: Repository): Promise<number> {
  const { signal } = new AbortController();
  const size = 50 * TiB;
  const digest = randomBytes(32);
  for (const source of ["one", "two"]) {
    const refs = new Map<string, PackRef>();
    const writer = new LayerWriter(size, CHUNK);
    const chunks = chunkCount(size, CHUNK);
    for (let chunk = 0; chunk < chunks; chunk += 256) {
      const pack = newUuid();
      refs.set(pack, { pack, digest, slotCount: 256, blobBytes: 256 * 200_000 });
      writer.add(chunk, 256, { pack, slot: 0 });
    }
    const layer = await storeLayer(repository, writer, (pack) => refs.get(pack)!, signal);
    await commitDisk(repository, source, 1, { name: "vda", size, chunkSize: CHUNK, layers: [layer] }, signal);
  }
  return 2;
}

async function commitDisk(
  repository: Repository,
  source: string,
  sequence: number,
  { size, chunkSize, layers }: MappedDisk,
  signal: AbortSignal,
): Promise<void> {
  const time = new Date(Date.UTC(2026, 0, 1) + sequence * HOUR_MS).toISOString();
  const plain = testManifest(time, { source, sequence, repository: repository.config.repository });
  const [disk] = plain.disks;
  await commitGeneration(repository, { ...plain, disks: [{ ...disk!, size, chunkSize, layers }] }, signal);
}
