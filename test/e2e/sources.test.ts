import { copyFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test, vi } from "vitest";
import { KiB, MiB } from "../../src/bytes/size.ts";
import { backUpRaw, nbdkit, qemuNbd, type GenerationJson } from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage, patchImage } from "../support/images.ts";
import { directoryRepository, keysUnder } from "../support/repositories.ts";

// each test is many runs of the program, which a busy machine may take its time for
vi.setConfig({ testTimeout: 180_000 });

const SIZE = 8 * MiB;

async function newImage(folder: string, name: string, seed: number): Promise<string> {
  const image = join(folder, name);
  await makeImage(image, {
    size: SIZE,
    seed,
    parts: [
      { kind: "random", length: 2 * MiB },
      { kind: "hole", length: MiB },
      { kind: "text", length: 3 * MiB },
    ],
  });
  return image;
}

describe("servers that can less", () => {
  test.each([
    { server: "without structured replies", flags: ["--no-sr"] },
    { server: "without extents", flags: ["--filter=noextents"] },
    {
      server: "with block size limits",
      flags: ["--filter=blocksize-policy"],
      parameters: [
        "blocksize-minimum=4096",
        "blocksize-preferred=32768",
        "blocksize-maximum=65536",
        "blocksize-error-policy=error",
      ],
    },
    {
      server: "with one connection",
      flags: ["--filter=multi-conn"],
      parameters: ["multi-conn-mode=disable"],
    },
  ])("$server", async ({ flags, parameters = [] }) => {
    const repository = await directoryRepository();
    const folder = await temporaryFolder();
    const image = await newImage(folder, "web.raw", 1);
    const { uri } = await nbdkit(["--readonly", ...flags, "file", image, ...parameters], {
      exportName: "web",
    });
    const taken = await repository.json<GenerationJson>("backup", uri, "--name", "web");
    expect(taken.stats.bytesZero).toBeGreaterThanOrEqual(3 * MiB);
    const target = join(folder, "restored.raw");
    await repository.json("restore", "web", "--to", target);
    expect(await compareFiles(target, image)).toBeUndefined();
  });
});

test("several disks in one generation, over TCP and a socket; one that joins later is a full", async () => {
  const repository = await directoryRepository();
  const folder = await temporaryFolder();
  const [vda, vdb, vdc] = [
    await newImage(folder, "vda", 1),
    await newImage(folder, "vdb", 2),
    await newImage(folder, "vdc", 1),
  ];
  const tcp = await nbdkit(["--readonly", "file", vda], { exportName: "a", tcp: true });
  const socket = await qemuNbd("--format=raw", vdb);
  const two = ["--disk", `vda=${tcp.uri}`, "--disk", `vdb=${socket.uri}`];
  await repository.json("backup", "--name", "db", ...two);
  const third = await qemuNbd("--format=raw", vdc);
  const taken = await repository.json<GenerationJson>(
    "backup",
    "--name",
    "db",
    ...two,
    "--disk",
    `vdc=${third.uri}`,
  );
  expect(taken.kind).toBe("full");
  expect(taken.reason).toContain("vdc");
  expect(taken.disks).toMatchObject([
    { name: "vda", kind: "rescan" },
    { name: "vdb", kind: "rescan" },
    { name: "vdc", kind: "full" },
  ]);
  expect(taken.stats.bytesStored).toBe(0); // the third is a copy of the first
  for (const [disk, image] of Object.entries({ vda, vdb, vdc })) {
    const target = join(folder, `${disk}.raw`);
    await repository.json("restore", "db", "--disk", disk, "--to", target);
    expect(await compareFiles(target, image)).toBeUndefined();
  }
  const unsaid = await repository.run("restore", "db", "--to", join(folder, "none"));
  expect(unsaid).toMatchObject({ code: 2, stdout: "" });
  expect(unsaid.stderr).toContain("--disk: vda, vdb, vdc");
});

test("two sources share chunks in one repository, and nothing between two", async () => {
  const [repository, other] = [await directoryRepository(), await directoryRepository()];
  const folder = await temporaryFolder();
  const image = await newImage(folder, "web.raw", 1);
  const clone = join(folder, "clone.raw");
  await copyFile(image, clone);
  await patchImage(clone, [{ offset: 3 * MiB + 5, length: 10, seed: 9 }]);
  const first = await backUpRaw(repository, image);
  const second = await backUpRaw(repository, clone, "--name", "clone");
  expect(second.kind).toBe("full");
  expect(second.stats.bytesStored).toBe(256 * KiB);
  expect(second.stats.bytesDeduplicated).toBe(first.stats.bytesStored - 256 * KiB);
  const alone = await backUpRaw(other, clone, "--name", "clone");
  expect(alone.stats.bytesDeduplicated).toBe(0);
  const unshared = await backUpRaw(repository, image, "--name", "unshared", "--dedup", "source");
  expect(unshared.stats).toMatchObject({ bytesDeduplicated: 0, bytesStored: first.stats.bytesStored });
  for (const [place, name, truth] of [
    [repository, "web", image],
    [repository, "clone", clone],
    [repository, "unshared", image],
    [other, "clone", clone],
  ] as const) {
    const target = join(folder, `${name}-${place === other ? "other" : "one"}`);
    await place.json("restore", name, "--to", target);
    expect(await compareFiles(target, truth)).toBeUndefined();
  }
});

describe("flags of backup", () => {
  test("--dry-run says what would be done and writes nothing", async () => {
    const repository = await directoryRepository();
    const image = await newImage(await temporaryFolder(), "web.raw", 1);
    const before = await repository.objects();
    const server = await qemuNbd("--format=raw", image);
    const plan = await repository.json("backup", server.uri, "--dry-run");
    expect(plan).toMatchObject({ disks: [{ name: "web", kind: "full", size: SIZE }] });
    expect(await repository.objects()).toEqual(before);
    await repository.json("backup", server.uri);
    const after = await repository.objects();
    const text = await repository.run("backup", server.uri, "--dry-run");
    expect(text).toMatchObject({ code: 0, stderr: "" });
    expect(text.stdout).toMatch(/^web: rescan \(/);
    expect(await repository.objects()).toEqual(after);
  });

  test("--full stands on nothing, reads all again and stores nothing twice", async () => {
    const repository = await directoryRepository();
    const image = await newImage(await temporaryFolder(), "web.raw", 1);
    const first = await backUpRaw(repository, image);
    const packs = await keysUnder(repository, "packs/");
    const again = await backUpRaw(repository, image, "--full");
    expect(again).toMatchObject({ kind: "full", parent: null, sequence: 2 });
    expect(again.reason).toContain("--full");
    expect(again.stats).toMatchObject({ bytesRead: first.stats.bytesRead, bytesStored: 0 });
    expect(await keysUnder(repository, "packs/")).toEqual(packs);
  });

  test("--tag labels are kept; --quiet says nothing on stderr", async () => {
    const repository = await directoryRepository();
    const server = await qemuNbd("--format=raw", await newImage(await temporaryFolder(), "web.raw", 1));
    const flags = ["--tag", "ticket=4711", "--tag", "by=me=you", "--quiet", "--strict"];
    expect(await repository.run("backup", server.uri, ...flags)).toMatchObject({ code: 0, stderr: "" });
    const shown = await repository.json<GenerationJson>("show", "latest");
    expect(shown.tags).toEqual({ ticket: "4711", by: "me=you" });
    const wrong = await repository.run("backup", server.uri, "--tag", "ticket");
    expect(wrong).toMatchObject({ code: 2, stdout: "" });
    expect(wrong.stderr).toContain('Not KEY=VALUE: "ticket"');
  });
});
