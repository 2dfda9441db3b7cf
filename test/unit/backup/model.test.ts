import { rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { ChunkStats } from "../../../src/backup/counts.ts";
import { chunkCount } from "../../../src/chunk/grid.ts";
import type { ChunkWorkers } from "../../../src/chunk/workers.ts";
import type { Extent } from "../../../src/disk/disk.ts";
import type { Manifest, ManifestDisk } from "../../../src/repository/manifest.ts";
import { diffDisks } from "../../../src/restore/diff.ts";
import { Backups, startWorkers } from "../../support/backups.ts";
import { memoryRepository } from "../../support/memory-repository.ts";
import { allocation, dirtySince, RandomDisk } from "../../support/random-disk.ts";
import { ScriptedDisk } from "../../support/scripted-disk.ts";
import { seeded } from "../../support/seeded.ts";

const CHUNK = 64 * 1024;
const CHUNKS_MAX = 40;
const SEEDS = 16;
/** Another set of seeds: `BLOCKHAUL_TEST_SEED=1000 npx vitest run test/unit/backup/model.test.ts`. */
const FIRST_SEED = Number(process.env["BLOCKHAUL_TEST_SEED"] ?? 1);
const never = new AbortController().signal;

let threads: { plain: ChunkWorkers; encrypted: ChunkWorkers };
beforeAll(async () => {
  const [plain, encrypted] = [memoryRepository(), memoryRepository({ encrypted: true })];
  threads = { plain: await startWorkers(plain), encrypted: await startWorkers(encrypted) };
});
afterAll(async () => {
  await threads.plain.close();
  await threads.encrypted.close();
});

/** A generation and what its disks held. */
interface Known {
  readonly manifest: Manifest;
  readonly content: ReadonlyMap<string, Buffer>;
}

/** A repository with random runs of a few sources, and the truth about it. */
class World {
  readonly known: Known[] = [];
  readonly #random: (below: number) => number;
  readonly #backups: Backups;
  readonly #disks = new Map<string, RandomDisk[]>();

  constructor(random: (below: number) => number, backups: Backups) {
    this.#random = random;
    this.#backups = backups;
    for (const source of ["web", "db"].slice(0, 1 + random(2))) {
      this.#disks.set(source, [this.#newDisk("vda"), ...(random(3) === 0 ? [this.#newDisk("vdb")] : [])]);
    }
  }

  /** Changes the disks of a source and backs them up in one of the ways there are. */
  async step(): Promise<void> {
    const random = this.#random;
    const sources = [...this.#disks.keys()];
    const source = sources[random(sources.length)]!;
    const disks = this.#disks.get(source)!;
    for (const disk of disks) {
      if (random(5) === 0) disk.resize(CHUNKS_MAX);
      disk.change(random(5));
    }
    if (random(8) === 0 && disks.length < 3) disks.push(this.#newDisk(`vd${"bcd"[disks.length - 1]!}`));
    const { cacheDir, repository } = this.#backups;
    if (random(6) === 0) {
      await rm(join(cacheDir, `${repository.config.repository}.sqlite`), { force: true });
    }
    const earlier = this.known.filter(({ manifest }) => manifest.source === source);
    const way = random(10);
    const parent =
      way < 6 ? earlier[random(3) === 0 ? random(earlier.length) : earlier.length - 1] : undefined;
    const grain = [512, 4096, CHUNK, CHUNK + 4096, 3 * CHUNK][random(5)]!;
    const scripted = disks.map((disk) => {
      const before = parent?.content.get(disk.name);
      const extents: Extent[] =
        before === undefined
          ? allocation(disk.bytes, grain, random)
          : dirtySince(before, disk.bytes, grain, random);
      return new ScriptedDisk(disk.name, Buffer.from(disk.bytes), { extents });
    });
    const { manifest } = await this.#backups.backup(scripted, {
      source,
      full: way === 9,
      scope: (["repository", "source", "off"] as const)[random(3)]!,
      ...(parent !== undefined && { bitmap: "b0", parent: parent.manifest.generation }),
    });
    const kinds = new Set(manifest.disks.map((disk) => disk.kind));
    if (parent !== undefined) expect(manifest.parent?.generation).toBe(parent.manifest.generation);
    if (way === 9 || earlier.length === 0) expect([...kinds]).toEqual(["full"]);
    for (const [index, disk] of manifest.disks.entries()) checkCounts(disk, scripted[index]!);
    this.known.push({ manifest, content: new Map(scripted.map((disk) => [disk.name, disk.bytes])) });
  }

  async check(): Promise<void> {
    for (const { manifest, content } of this.known) {
      for (const disk of manifest.disks) {
        const restored = await this.#backups.restore(disk);
        expect(restored.equals(content.get(disk.name)!), `${manifest.generation} ${disk.name}`).toBe(true);
      }
    }
  }

  /** `diff` of two random generations against their bytes. */
  async checkDiff(): Promise<void> {
    const [one, other] = [this.#any(), this.#any()];
    for (const disk of one.manifest.disks) {
      const otherDisk = other.manifest.disks.find(({ name }) => name === disk.name);
      if (otherDisk === undefined) continue;
      const [a, b] = [one.content.get(disk.name)!, other.content.get(disk.name)!];
      const found: number[] = [];
      let end = -1;
      for await (const { offset, length } of diffDisks(disk, otherDisk, this.#backups.tools(), never)) {
        expect(offset, "ranges neither touch nor overlap").toBeGreaterThan(end);
        end = offset + length;
        expect(end === Math.max(a.length, b.length) || end % CHUNK === 0).toBe(true);
        for (let at = offset; at < end; at += CHUNK) found.push(at / CHUNK);
      }
      expect(found).toEqual(differences(a, b));
    }
  }

  #any(): Known {
    return this.known[this.#random(this.known.length)]!;
  }

  #newDisk(name: string): RandomDisk {
    return new RandomDisk(name, this.#random, CHUNK, CHUNKS_MAX);
  }
}

/**
 * Chunk by chunk; a disk that ends reads as zeros from there. A chunk with data that is cut short in one of the disks
 * differs.
 */
function differences(a: Buffer, b: Buffer): number[] {
  const size = Math.max(a.length, b.length);
  const smaller = Math.min(a.length, b.length);
  const [longA, longB] = [Buffer.alloc(size), Buffer.alloc(size)];
  a.copy(longA);
  b.copy(longB);
  return Array.from({ length: chunkCount(size, CHUNK) }, (_, chunk) => chunk).filter((chunk) => {
    const [from, to] = [chunk * CHUNK, Math.min((chunk + 1) * CHUNK, size)];
    const cut = from < smaller && smaller < to && longA.subarray(from, to).some((byte) => byte !== 0);
    return cut || !longA.subarray(from, to).equals(longB.subarray(from, to));
  });
}

/** Every chunk that a run looked at is counted once; what is read is what the source was asked for. */
function checkCounts(disk: ManifestDisk, source: ScriptedDisk): void {
  const { counts } = disk;
  const read = source.reads.reduce((sum, { length }) => sum + length, 0);
  expect(counts.bytesRead).toBe(read);
  expect(became(counts)).toBeGreaterThanOrEqual(read);
  if (disk.kind !== "incremental") {
    expect(became(counts)).toBe(disk.size);
    expect(counts.chunksZero + counts.chunksUnchanged + counts.chunksDeduplicated + counts.chunksStored).toBe(
      chunkCount(disk.size, disk.chunkSize),
    );
  }
}

function became(counts: ChunkStats): number {
  return counts.bytesZero + counts.bytesUnchanged + counts.bytesDeduplicated + counts.bytesStored;
}

const seeds = Array.from({ length: SEEDS }, (_, index) => FIRST_SEED + index);

test.each(seeds)(
  "whatever happened to the disks, every generation restores exactly (seed %i)",
  async (seed) => {
    const random = seeded(seed);
    const encrypted = random(3) === 0;
    const packSize = [4 * CHUNK, 8 * CHUNK, 16 * CHUNK][random(3)]!;
    const repository = memoryRepository({ encrypted, packSize, partSize: [CHUNK, 2 * CHUNK][random(2)]! });
    const backups = await Backups.start(repository, encrypted ? threads.encrypted : threads.plain);
    const world = new World(random, backups);
    const runs = 4 + random(5);
    for (let run = 0; run < runs; run++) {
      await world.step();
      await world.check();
      await world.checkDiff();
    }
    expect(backups.warnings).toEqual([]);
    const report = await backups.verify();
    expect(report.problems).toEqual([]);
    expect(report.chunksRead).toBe(report.chunks);
  },
);
