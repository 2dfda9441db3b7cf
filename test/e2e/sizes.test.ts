import { truncate } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test, vi } from "vitest";
import { KiB, MiB, TiB } from "../../src/bytes/size.ts";
import {
  backUpFile,
  backUpQcow2,
  createQcow2,
  keepTruth,
  nbdkit,
  qemuImg,
  qemuIo,
  qemuNbd,
  type GenerationJson,
} from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage, patchImage, sha256OfFile } from "../support/images.ts";
import { directoryRepository, type TestRepository } from "../support/repositories.ts";

// each test is many runs of the program, which a busy machine may take its time for
vi.setConfig({ testTimeout: 180_000 });

const CHUNK = 256 * KiB;

/** One disk through its life: after each step a generation, and what the disk held then. */
class Life {
  readonly repository: TestRepository;
  readonly folder: string;
  readonly image: string;
  readonly #truths: { readonly generation: string; readonly truth: string }[] = [];

  constructor(repository: TestRepository, folder: string, image: string) {
    this.repository = repository;
    this.folder = folder;
    this.image = join(folder, image);
  }

  static async begin(image: string): Promise<Life> {
    return new Life(await directoryRepository(), await temporaryFolder(), image);
  }

  async took(generation: GenerationJson, format: "raw" | "qcow2"): Promise<GenerationJson> {
    const truth = join(this.folder, `truth-${this.#truths.length}`);
    await keepTruth(format, this.image, truth);
    this.#truths.push({ generation: generation.generation, truth });
    return generation;
  }

  async expectRestored(): Promise<void> {
    for (const { generation, truth } of this.#truths) {
      const target = join(this.folder, `${generation}.raw`);
      await this.repository.json("restore", generation, "--to", target);
      expect(await compareFiles(target, truth), generation).toBeUndefined();
    }
  }
}

test("sizes that are no multiple of anything, all in one generation", async () => {
  const repository = await directoryRepository();
  const folder = await temporaryFolder();
  const sizes = [1, 511, CHUNK - 1, CHUNK + 1, 3 * MiB + 17];
  const images = sizes.map((size) => join(folder, `${size}`));
  for (const [index, size] of sizes.entries()) {
    await makeImage(images[index]!, { size, seed: size, parts: [{ kind: "random", length: size }] });
  }
  const take = async (): Promise<GenerationJson> => {
    const disks: string[] = [];
    for (const [index, size] of sizes.entries()) {
      const server = await nbdkit(["--readonly", "file", images[index]!]);
      disks.push("--disk", `d${size}=${server.uri}`);
    }
    return await repository.json<GenerationJson>("backup", "--name", "odd", ...disks);
  };
  const expectRestored = async (generation: string): Promise<void> => {
    for (const [index, size] of sizes.entries()) {
      const target = join(folder, `${generation}-${size}`);
      await repository.json("restore", generation, "--disk", `d${size}`, "--to", target);
      expect(await compareFiles(target, images[index]!)).toBeUndefined();
    }
  };
  const full = await take();
  const total = sizes.reduce((sum, size) => sum + size, 0);
  expect(full.disks.map(({ name, size }) => [name, size])).toEqual(sizes.map((size) => [`d${size}`, size]));
  expect(full.stats).toMatchObject({ bytesRead: total, bytesStored: total });
  await expectRestored(full.generation);

  // the last byte of each
  for (const [index, size] of sizes.entries()) {
    await patchImage(images[index]!, [{ offset: size - 1, bytes: Buffer.from([0]) }]);
  }
  const changed = await take();
  expect(changed.stats.bytesZero).toBe(2); // and of the disk a byte longer than a chunk, its last chunk
  await expectRestored(changed.generation);
});

describe("a disk that grows and shrinks", () => {
  test("compared with its parent: the tail is neither kept nor lost", async () => {
    const life = await Life.begin("web.raw");
    const sizes = [3 * MiB + 100, 5 * MiB + 7, 2 * MiB - 1, 6 * MiB, 6 * MiB + CHUNK, 1];
    await makeImage(life.image, { size: sizes[0]!, seed: 3, parts: [{ kind: "random", length: sizes[0]! }] });
    for (const [turn, size] of sizes.entries()) {
      await truncate(life.image, size);
      // twice a change in what is new; else it stays zero, where a generation before the shrink had data
      if (turn === 1) await patchImage(life.image, [{ offset: size - 300_000, length: 300_000, seed: turn }]);
      const taken = await life.took(await backUpFile(life.repository, life.image), "raw");
      expect(taken.kind).toBe(turn === 0 ? "full" : "rescan");
      expect(taken.disks).toMatchObject([{ size }]);
    }
    await life.expectRestored();
  });

  test("with a bitmap, which knows nothing of a new size: what was cut off reads as zeros later", async () => {
    const life = await Life.begin("web.qcow2");
    const bitmap = (name: string): Promise<string> => qemuImg("bitmap", "--add", life.image, name);
    const take = async (name: string, parent: string): Promise<GenerationJson> => {
      const taken = await life.took(
        await backUpQcow2(life.repository, life.image, { name, parent }),
        "qcow2",
      );
      expect(taken).toMatchObject({ kind: "incremental", parent });
      return taken;
    };
    await createQcow2(life.image, 8 * MiB + 512);
    await qemuIo("qcow2", life.image, "write -P 1 0 8389120");
    await bitmap("a");
    const first = await life.took(await backUpQcow2(life.repository, life.image), "qcow2");

    await qemuImg("resize", "-q", "--shrink", life.image, `${5 * MiB + 1536}`);
    await bitmap("b");
    const shrunk = await take("a", first.generation);

    await qemuImg("resize", "-q", life.image, `${8 * MiB + CHUNK + 512}`);
    await bitmap("c");
    const grown = await take("b", shrunk.generation);

    await qemuIo("qcow2", life.image, "write -P 7 8384k 64k");
    await take("c", grown.generation);
    const rescan = await life.took(await backUpQcow2(life.repository, life.image), "qcow2");
    expect(rescan.stats).toMatchObject({ bytesStored: 0, bytesZero: 0, bytesDeduplicated: 0 });
    await life.expectRestored();
  });
});

test("64 TiB, almost all of it nothing: little read, little stored, bounded memory", async () => {
  const folder = await temporaryFolder();
  const image = join(folder, "huge.qcow2");
  await qemuImg("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", image, "64T");
  await qemuIo("qcow2", image, "write -P 5 1M 1k", "write -P 6 40T 300k", `write -P 7 ${64 * TiB - 512} 512`);
  const repository = await directoryRepository();
  const server = await qemuNbd("--format=qcow2", image);
  const full = await repository.json<GenerationJson>("backup", server.uri);
  expect(full.disks).toMatchObject([{ size: 64 * TiB }]);
  expect(full.stats.bytesRead).toBeLessThanOrEqual(6 * MiB); // clusters of 2 MiB, of which qemu knows zeros
  expect(full.stats.bytesRead + full.stats.bytesZero).toBeGreaterThanOrEqual(64 * TiB);
  expect(full.stats.metadataBytes).toBeLessThan(10_000);
  expect(full.stats.peakRssBytes).toBeLessThan(400 * MiB);
  await server.stop();

  await qemuIo("qcow2", image, "write -P 8 50T 4k", "write -z 40T 2M");
  const changed = await qemuNbd("--format=qcow2", image);
  await repository.json("backup", changed.uri);
  const diff = await repository.json<{ ranges: object[] }>("diff", full.generation, "web");
  expect(diff.ranges).toEqual([
    { offset: 40 * TiB, length: 2 * CHUNK },
    { offset: 50 * TiB, length: CHUNK },
  ]);
  const report = await repository.json<{ problems: object[] }>("verify", "--read-data");
  expect(report.problems).toEqual([]);

  const restored = join(folder, "restored.qcow2");
  await repository.json("restore", "web", "--to", `qcow2:${restored}`);
  const piece = async (file: string, offset: number): Promise<string> => {
    const copy = `${file}.piece`;
    const where = ["bs=4k", `skip=${offset / (4 * KiB)}`, "count=64"];
    await qemuImg("dd", "-f", "qcow2", "-O", "raw", ...where, `if=${file}`, `of=${copy}`);
    return await sha256OfFile(copy);
  };
  for (const offset of [MiB, 40 * TiB, 50 * TiB, 64 * TiB - 4 * KiB]) {
    expect(await piece(restored, offset), `${offset}`).toBe(await piece(image, offset));
  }
});
