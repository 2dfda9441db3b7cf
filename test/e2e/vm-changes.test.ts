import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, test, vi } from "vitest";
import { KiB, MiB } from "../../src/bytes/size.ts";
import { ModelledVm } from "../support/modelled-vm.ts";
import { QEMU_10 } from "../support/qemu-vm.ts";
import { directoryRepository, type TestRepository } from "../support/repositories.ts";
import type { VmGenerationJson, VmRun } from "../support/vm-runs.ts";

/** What happens to a VM between its backups, and what the next one makes of its bitmaps. */
vi.setConfig({ testTimeout: 120_000 });

const never = new AbortController().signal;
const run = promisify(execFile);
const SIZE = 16 * MiB;
const DISKS = [
  { node: "drive0", size: SIZE },
  { node: "drive1", size: SIZE },
];

/** A VM with something on its disks, and its first generation. */
async function backedUp(program?: string): Promise<{ vm: ModelledVm; repository: TestRepository }> {
  const vm = await ModelledVm.start(DISKS, program);
  const repository = await directoryRepository();
  await vm.write("drive0", 0, 6 * MiB, 1);
  await vm.write("drive1", 5 * MiB, 3 * MiB, 2);
  expect(await vm.generation(repository)).toMatchObject({ kind: "full", consistency: "crash" });
  return { vm, repository };
}

/** Both disks change a little, and the next generation has it. */
async function next(
  vm: ModelledVm,
  repository: TestRepository,
  ...flags: string[]
): Promise<VmGenerationJson> {
  for (const node of vm.nodes) await vm.write(node, 4 * MiB + 100 * KiB, 200 * KiB, 3 + vm.pictures.size);
  const generation = await vm.generation(repository, ...flags);
  expect(await vm.differences(repository, generation)).toEqual([]);
  expect(await vm.leftovers()).toEqual([]);
  return generation;
}

/** @param disks kind of each. */
function expectKinds(generation: VmGenerationJson, ...disks: VmGenerationJson["kind"][]): void {
  expect(generation.disks.map(({ kind, reason }) => ({ kind, reason }))).toMatchObject(
    disks.map((kind) => ({ kind })),
  );
}

async function expectIncremental(vm: ModelledVm, repository: TestRepository): Promise<void> {
  const generation = await next(vm, repository);
  expectKinds(generation, ...vm.nodes.map(() => "incremental" as const));
  expect(generation.stats.bytesRead).toBeLessThan(SIZE / 4);
}

/** The reason that `list` shows for a generation. */
async function listedReason(repository: TestRepository, { generation }: VmGenerationJson): Promise<string> {
  const { stdout } = await repository.run("list");
  return stdout.split("\n").find((line) => line.startsWith(generation))!;
}

describe.each([
  ["the system's", undefined],
  ["10", QEMU_10],
])("QEMU: %s", (_, program) => {
  test("stopped in order and started again: the bitmaps are there, incremental", async () => {
    const { vm, repository } = await backedUp(program);
    await next(vm, repository);
    await vm.vm.quit();
    await vm.vm.boot();
    await expectIncremental(vm, repository);
  });

  test("killed: a bitmap of its session is gone, one that was loaded is worthless; both times a rescan", async () => {
    const { vm, repository } = await backedUp(program);
    await vm.flush();
    await vm.vm.process.stop();
    await vm.vm.boot();
    const gone = await next(vm, repository);
    expectKinds(gone, "rescan", "rescan");
    expect(await listedReason(repository, gone)).toMatch(
      /rescan .*it has no bitmap of generation .*QEMU ended/,
    );
    await vm.vm.quit();
    await vm.vm.boot();
    await vm.flush();
    await vm.vm.process.stop();
    await vm.vm.boot();
    const inconsistent = await next(vm, repository);
    expectKinds(inconsistent, "rescan", "rescan");
    expect(await listedReason(repository, inconsistent)).toMatch(
      /rescan .*QEMU ended without storing its bitmap/,
    );
    await expectIncremental(vm, repository);
    expect(Object.values(await vm.vm.bitmaps()).map((names) => names.length)).toEqual([1, 1]);
  });
});

test("an internal snapshot between backups: incremental", async () => {
  const { vm, repository } = await backedUp();
  const snapshot = { device: "drive0", name: "before" };
  await vm.vm.hand.execute("blockdev-snapshot-internal-sync", snapshot, never);
  await expectIncremental(vm, repository);
});

test("an external snapshot: the disk is rescanned and the reason says so; the other stays incremental", async () => {
  const { vm, repository } = await backedUp();
  await vm.snapshot("drive0");
  const generation = await next(vm, repository);
  expectKinds(generation, "rescan", "incremental");
  expect(generation.reason).toContain(
    "dev-drive0: its bitmap is on an image below: a snapshot was made over it",
  );
  await expectIncremental(vm, repository);
});

test("a snapshot that is written back: the disk has the bitmap that it had, and what was written back is in it", async () => {
  const { vm, repository } = await backedUp();
  await vm.snapshot("drive0");
  await vm.write("drive0", 9 * MiB, MiB, 8);
  await vm.commitSnapshot("drive0");
  await expectIncremental(vm, repository);
});

test("a disk that grows is rescanned, and incremental from then on", async () => {
  const { vm, repository } = await backedUp();
  await vm.resize("drive0", SIZE + 5 * MiB + 512);
  await vm.write("drive0", SIZE + MiB, MiB, 9);
  const generation = await next(vm, repository);
  expectKinds(generation, "rescan", "incremental");
  expect(generation.disks[0]).toMatchObject({
    size: SIZE + 5 * MiB + 512,
    reason: expect.stringContaining("its size changed") as string,
  });
  await expectIncremental(vm, repository);
});

test("a disk that the VM gets, and one that it loses", async () => {
  const { vm, repository } = await backedUp();
  await vm.vm.quit();
  const path = join(vm.vm.scratchDir, "..", "third.qcow2");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", path, `${SIZE}`]);
  vm.add("third", SIZE);
  vm.vm.disks = [...vm.vm.disks, { node: "third", path }];
  await vm.vm.boot();
  const more = await next(vm, repository);
  expectKinds(more, "incremental", "incremental", "full");
  expect(more.disks[2]!.reason).toContain("is not in generation");
  await expectIncremental(vm, repository);

  await vm.vm.quit();
  vm.remove("drive0");
  vm.vm.disks = vm.vm.disks.slice(1);
  await vm.vm.boot();
  await expectIncremental(vm, repository);
});

test("--disk takes one of two; the other is not forgotten", async () => {
  const { vm, repository } = await backedUp();
  const one = await next(vm, repository, "--disk", "dev-drive1");
  expect(one.disks).toMatchObject([{ name: "dev-drive1", kind: "incremental" }]);
  const both = await next(vm, repository);
  expect(both.disks.find(({ name }) => name === "dev-drive1")!.kind).toBe("incremental");
  const { code, said } = await vm.backUp(repository, ["--disk", "dev-drive2"]);
  expect(code).toBe(10);
  expect(said.at(-1)!.message).toContain("it has dev-drive0, dev-drive1");
});

test("two repositories in turns: each has its bitmap, both stay incremental", async () => {
  const { vm, repository } = await backedUp();
  const other = await directoryRepository();
  expect(await vm.generation(other)).toMatchObject({ kind: "full" });
  for (let round = 0; round < 3; round++) {
    await expectIncremental(vm, repository);
    await expectIncremental(vm, other);
  }
  for (const names of Object.values(await vm.vm.bitmaps())) expect(names).toHaveLength(2);
});

test("a raw disk keeps no bitmap over a restart; what is beside it stays incremental", async () => {
  const disks = [{ node: "drive0", size: SIZE, format: "raw" as const }, DISKS[1]!];
  const vm = await ModelledVm.start(disks);
  const repository = await directoryRepository();
  await vm.generation(repository);
  await expectIncremental(vm, repository);
  await vm.vm.quit();
  await vm.vm.boot();
  const generation = await next(vm, repository);
  expectKinds(generation, "rescan", "incremental");
  expect(generation.disks[0]!.reason).toContain("an image of this kind (raw) keeps none");
});

test("a generation that was dropped: its bitmap is of no use and goes, the older one's run is a rescan", async () => {
  const { vm, repository } = await backedUp();
  await next(vm, repository);
  const { generation } = await next(vm, repository);
  await run("rm", [join(repository.location, "generations", "vm", `${generation}.json`)]);
  const after = await next(vm, repository);
  expectKinds(after, "rescan", "rescan");
  for (const names of Object.values(await vm.vm.bitmaps()))
    expect(names).toEqual([expect.stringContaining(after.generation)]);
});

test("writes while a generation is pulled are in the next one, and only there", async () => {
  const { vm, repository } = await backedUp();
  vm.atInstant = async () => {
    await vm.write("drive0", 2 * MiB, 2 * MiB, 77);
    await vm.write("drive1", 6 * MiB, MiB, 0);
  };
  const first: VmRun = await vm.backUp(repository, ["--full"]);
  expect(await vm.differences(repository, first.generation!)).toEqual([]);
  vm.atInstant = () => Promise.resolve();
  const second = await vm.generation(repository);
  expectKinds(second, "incremental", "incremental");
  expect(await vm.differences(repository, second)).toEqual([]);
});
