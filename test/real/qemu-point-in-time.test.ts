import { readdir, stat } from "node:fs/promises";
import { describe, expect, test } from "vitest";
import {
  BackedUpVm,
  bitmapOf,
  changesOf,
  commit,
  generation,
  known,
  openRun,
  expectShows,
  type TestDisk,
  qemuFor,
} from "../support/backed-up-vm.ts";

const never = new AbortController().signal;
const KiB = 1024;
const MiB = 1024 * KiB;
const TWO: readonly TestDisk[] = [
  { node: "drive0", size: 32 * MiB },
  { node: "drive1", size: 16 * MiB + 4608 },
];

describe.each(["classic", "filter"] as const)("%s fleecing", (fleecing) => {
  test("shows every disk as it was at the instant, and records from then on", async () => {
    const tested = await BackedUpVm.start(TWO, [], qemuFor(fleecing));
    await tested.write("drive0", 0, MiB, 0x11);
    await tested.write("drive1", 64 * KiB, 64 * KiB, 0x12);
    const before = await tested.picture();
    const run = await openRun(tested, 1, [], { fleecing });
    await tested.write("drive0", 32 * KiB, 64 * KiB, 0x21);
    await tested.write("drive1", 0, 128 * KiB, 0x22);

    const [zero, one] = run.pit.disks;
    expect(zero).toMatchObject({ name: "dev-drive0", size: 32 * MiB, bitmap: undefined });
    expect(zero!.newBitmap).toBe(bitmapOf(1, "drive0"));
    await expectShows(zero!, 0, Buffer.alloc(MiB, 0x11));
    await expectShows(zero!, MiB, Buffer.alloc(MiB));
    const old = Buffer.alloc(192 * KiB);
    old.fill(0x12, 64 * KiB, 128 * KiB);
    await expectShows(one!, 0, old);
    await expectShows(one!, 16 * MiB, Buffer.alloc(4608));
    expect(run.pit).toMatchObject({ consistency: "crash", frozenMs: undefined });
    await commit(run);

    const after = await tested.survey();
    expect(after.disks.map((disk) => disk.bitmaps)).toMatchObject([
      [{ name: bitmapOf(1, "drive0"), recording: true, persistent: true, dirtyBytes: 128 * KiB }],
      [{ name: bitmapOf(1, "drive1"), recording: true, persistent: true, dirtyBytes: 128 * KiB }],
    ]);
    for (const { node, bitmaps } of after.disks) {
      for (const { name } of bitmaps) {
        await tested.hand.execute("block-dirty-bitmap-remove", { node, name }, never);
      }
    }
    expect(await tested.picture()).toEqual(before);
    expect(tested.warnings).toEqual([]);
  });

  test("an incremental shows what changed since its parent; both bitmaps go on until its end", async () => {
    const tested = await BackedUpVm.start(TWO, [], qemuFor(fleecing));
    await commit(await openRun(tested, 1, [], { fleecing }));
    await tested.write("drive0", MiB, 64 * KiB, 0x31);
    const run = await openRun(tested, 2, [known(1, TWO)], { fleecing });
    expect(run.ways.get("dev-drive0")!.reason).toContain("bitmap since generation");
    await tested.write("drive0", MiB, 4 * KiB, 0x41);
    await tested.write("drive0", 8 * MiB, 64 * KiB, 0x41);

    const [zero, one] = run.pit.disks;
    expect(await changesOf(zero!)).toEqual([{ offset: MiB, length: 64 * KiB, state: "data" }]);
    expect(await changesOf(one!)).toEqual([]);
    await expectShows(zero!, MiB, Buffer.alloc(64 * KiB, 0x31));
    // outside of what is dirty, too: a chunk may be larger than a bit
    await expectShows(zero!, 8 * MiB - 64 * KiB, Buffer.alloc(192 * KiB));
    const during = (await tested.survey()).nodes.find(({ name }) => name === "drive0")!.bitmaps;
    const dirty = Object.fromEntries(
      during.map(({ name, recording, dirtyBytes }) => [name, { recording, dirtyBytes }]),
    );
    expect(dirty[bitmapOf(1, "drive0")]).toEqual({ recording: true, dirtyBytes: 128 * KiB });
    expect(dirty[bitmapOf(2, "drive0")]).toEqual({ recording: true, dirtyBytes: 128 * KiB });
    expect(dirty[`bk-${generation(2).slice(-12)}-tmp`]).toMatchObject({ recording: false });
    await commit(run);
    expect(await tested.bitmaps()).toEqual({
      drive0: [bitmapOf(2, "drive0")],
      drive1: [bitmapOf(2, "drive1")],
    });
  });

  test("after a failure the parent's bitmap knows everything, and nothing else is left", async () => {
    const tested = await BackedUpVm.start(TWO, [], qemuFor(fleecing));
    await commit(await openRun(tested, 1, [], { fleecing }));
    const before = await tested.picture();
    await tested.write("drive0", 0, 64 * KiB, 1);
    const failed = await openRun(tested, 2, [known(1, TWO)], { fleecing });
    await tested.write("drive0", MiB, 64 * KiB, 2);
    await failed.pit.close("failed");
    await failed.vm.close();
    expect(await tested.bitmaps()).toEqual({
      drive0: [bitmapOf(1, "drive0")],
      drive1: [bitmapOf(1, "drive1")],
    });
    const again = await openRun(tested, 3, [known(1, TWO)], { fleecing });
    expect(await changesOf(again.pit.disks[0]!)).toEqual([
      { offset: 0, length: 64 * KiB, state: "data" },
      { offset: MiB, length: 64 * KiB, state: "data" },
    ]);
    await again.pit.close("failed");
    expect(await tested.picture()).toEqual(before);
  });

  test("when nobody knows how it ended, both bitmaps stay, and either can be stood on", async () => {
    const tested = await BackedUpVm.start(TWO, [], qemuFor(fleecing));
    await commit(await openRun(tested, 1, [], { fleecing }));
    await tested.write("drive0", 0, 64 * KiB, 1);
    const doubtful = await openRun(tested, 2, [known(1, TWO)], { fleecing });
    await tested.write("drive0", MiB, 64 * KiB, 2);
    await doubtful.pit.close("unknown");
    await doubtful.vm.close();
    expect(Object.values(await tested.bitmaps()).map((names) => names.length)).toEqual([2, 2]);

    const listed = await openRun(tested, 3, [known(2, TWO), known(1, TWO)], { fleecing });
    expect(await changesOf(listed.pit.disks[0]!)).toEqual([{ offset: MiB, length: 64 * KiB, state: "data" }]);
    await listed.pit.close("failed");
    await listed.vm.close();
    const missing = await openRun(tested, 4, [known(1, TWO)], { fleecing });
    expect(await changesOf(missing.pit.disks[0]!)).toHaveLength(2);
    await commit(missing);
    expect(await tested.bitmaps()).toEqual({
      drive0: [bitmapOf(4, "drive0")],
      drive1: [bitmapOf(4, "drive1")],
    });
  });

  test("disks that keep no bitmap have one until QEMU ends", async () => {
    const disks: readonly TestDisk[] = [
      { node: "drive0", size: 8 * MiB, format: "raw" },
      { node: "drive1", size: 8 * MiB, create: ["-o", "compat=0.10"] },
    ];
    const tested = await BackedUpVm.start(disks, [], qemuFor(fleecing));
    await commit(await openRun(tested, 1, [], { fleecing }));
    await tested.write("drive0", 0, 64 * KiB, 1);
    const run = await openRun(tested, 2, [known(1, disks)], { fleecing });
    expect(await changesOf(run.pit.disks[0]!)).toHaveLength(1);
    expect(await changesOf(run.pit.disks[1]!)).toHaveLength(0);
    await commit(run);
    const after = await tested.survey();
    expect(after.disks.map(({ bitmaps }) => bitmaps)).toMatchObject([
      [{ persistent: false }],
      [{ persistent: false }],
    ]);
  });
});

describe("the order of the steps", () => {
  test("one transaction, jobs before bitmaps; the server before it and exports after it", async () => {
    const tested = await BackedUpVm.start(TWO);
    await commit(await openRun(tested, 1, []));
    tested.proxy.reset();
    const run = await openRun(tested, 2, [known(1, TWO)]);
    const names = tested.proxy.commands
      .map(({ execute }) => execute)
      .filter((name) => !name.startsWith("query-"));
    expect(names).toEqual([
      ...["blockdev-add", "blockdev-add", "blockdev-add", "blockdev-add"],
      "nbd-server-start",
      "transaction",
      "block-export-add",
      "block-export-add",
    ]);
    const transaction = tested.proxy.commands.find(({ execute }) => execute === "transaction")!;
    const { actions } = transaction.arguments as { actions: { type: string }[] };
    expect(actions.map(({ type }) => type)).toEqual([
      ...["blockdev-backup", "blockdev-backup"],
      ...["block-dirty-bitmap-add", "block-dirty-bitmap-add", "block-dirty-bitmap-merge"],
      ...["block-dirty-bitmap-add", "block-dirty-bitmap-add", "block-dirty-bitmap-merge"],
    ]);
    tested.proxy.reset();
    await commit(run);
    const removals = tested.proxy.commands.filter(({ execute }) => execute === "transaction");
    expect(removals).toHaveLength(1);
    const last = tested.proxy.commands.at(-1)!;
    expect(last).toBe(removals[0]);
  });

  test.each(["classic", "filter"] as const)(
    "taking down: exports, then what they read from, then bitmaps (%s)",
    async (fleecing) => {
      const tested = await BackedUpVm.start([TWO[0]!], [], qemuFor(fleecing));
      await commit(await openRun(tested, 1, [], { fleecing }));
      const run = await openRun(tested, 2, [known(1, [TWO[0]!])], { fleecing });
      tested.proxy.reset();
      await commit(run);
      const steps = tested.proxy.commands
        .filter(({ execute }) => !execute.startsWith("query-"))
        .map(({ execute, arguments: args }) => {
          const { "node-name": node, name } = (args ?? {}) as { "node-name"?: string; name?: string };
          return `${execute} ${(node ?? name ?? "").replace(/^bk-0+2-/, "")}`.trim();
        });
      const [job, view] = [["block-job-cancel"], ["blockdev-del a0", "qom-set", "blockdev-del c0"]];
      const mark = fleecing === "filter" ? ["block-dirty-bitmap-remove c0"] : [];
      expect(steps).toEqual([
        "block-export-del",
        ...(fleecing === "classic" ? job : []),
        "nbd-server-stop",
        ...(fleecing === "filter" ? view : []),
        ...["blockdev-del s0", "blockdev-del f0"],
        ...["block-dirty-bitmap-remove tmp", ...mark],
        "transaction",
      ]);
    },
  );
});

test("the scratch images lie in the folder for nobody else to read, and are gone in the end", async () => {
  const tested = await BackedUpVm.start(TWO);
  const run = await openRun(tested, 1, []);
  const files = await readdir(tested.scratchDir);
  expect(files.sort()).toEqual([
    "bk-000000000001-0.qcow2",
    "bk-000000000001-1.qcow2",
    "bk-000000000001.run",
    "bk-000000000001.sock",
  ]);
  const { mode, blocks } = await stat(`${tested.scratchDir}/bk-000000000001-0.qcow2`);
  expect(mode & 0o777).toBe(0o600);
  expect(blocks * 512).toBeGreaterThanOrEqual(32 * MiB); // set aside
  await commit(run);
});
