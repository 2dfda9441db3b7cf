import { rm } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { QmpClient } from "../../src/qemu/qmp/client.ts";
import {
  BackedUpVm,
  bitmapOf,
  changesOf,
  commit,
  generation,
  known,
  openRun,
  expectShows,
  readExport,
  type OpenRun,
  type TestDisk,
  qemuFor,
} from "../support/backed-up-vm.ts";
import { failure } from "../support/outcomes.ts";

/** What others do to a VM while it is backed up, and what of theirs must not be touched. */
const never = new AbortController().signal;
const KiB = 1024;
const MiB = 1024 * KiB;
const DISKS: readonly TestDisk[] = [
  { node: "drive0", size: 16 * MiB },
  { node: "drive1", size: 16 * MiB },
];
const LISTED = [known(1, DISKS)];
const TOKEN = generation(2).slice(-12);
const LOST = { kind: "source", code: "E_POINT_IN_TIME_LOST" };

async function withParent(fleecing: "classic" | "filter" = "classic"): Promise<BackedUpVm> {
  const tested = await BackedUpVm.start(DISKS, [], qemuFor(fleecing));
  await commit(await openRun(tested, 1));
  return tested;
}

async function expectLost({ pit }: OpenRun, message: RegExp): Promise<void> {
  expect(await failure(pit.lost)).toMatchObject({
    ...LOST,
    message: expect.stringMatching(message) as string,
  });
  expect(await failure(pit.assertAlive(never))).toMatchObject(LOST);
}

async function expectFailedCleanly(tested: BackedUpVm, { pit, vm }: OpenRun, before: object): Promise<void> {
  await pit.close("failed");
  await vm.close();
  expect(tested.warnings).toEqual([]);
  expect(await tested.picture()).toEqual(before);
}

describe("the point in time is lost", () => {
  test("when a job is cancelled by another hand", async () => {
    const tested = await withParent();
    const before = await tested.picture();
    const run = await openRun(tested, 2, LISTED);
    await run.pit.assertAlive(never);
    await tested.hand.execute("block-job-cancel", { device: `bk-${TOKEN}-job-1`, force: true }, never);
    await expectLost(run, /job of disk dev-drive1 has ended/);
    await expectFailedCleanly(tested, run, before);
  });

  test("when nobody tells: the jobs are asked for", async () => {
    const tested = await withParent();
    const run = await openRun(tested, 2, LISTED);
    tested.proxy.dropEvents = true;
    await tested.hand.execute("block-job-cancel", { device: `bk-${TOKEN}-job-0`, force: true }, never);
    await expect.poll(() => tested.hand.execute("query-block-jobs", undefined, never)).toHaveLength(1);
    expect(await failure(run.pit.assertAlive(never))).toMatchObject(LOST);
    expect(await failure(run.pit.lost)).toMatchObject(LOST);
    await run.pit.close("failed");
  });

  test("when an export is deleted by another hand", async () => {
    const tested = await withParent();
    const before = await tested.picture();
    const run = await openRun(tested, 2, LISTED);
    await tested.hand.execute("block-export-del", { id: `bk-${TOKEN}-exp-0`, mode: "hard" }, never);
    await expectLost(run, /export of disk dev-drive0 was deleted/);
    await expectFailedCleanly(tested, run, before);
  });

  test("when a filter is taken out", async () => {
    const tested = await withParent("filter");
    const before = await tested.picture();
    const run = await openRun(tested, 2, LISTED, { fleecing: "filter" });
    const path = "/machine/peripheral/dev-drive0/virtio-backend";
    const other = { driver: "null-co", "node-name": "other", size: 16 * MiB };
    await tested.hand.execute("blockdev-add", other, never);
    await tested.hand.execute("qom-set", { path, property: "drive", value: "other" }, never);
    expect(await failure(run.pit.assertAlive(never))).toMatchObject({
      ...LOST,
      message: expect.stringContaining("dev-drive0") as string,
    });
    await run.pit.close("failed");
    expect((await tested.survey()).disks[0]).toMatchObject({ node: "other" }); // theirs now
    await tested.hand.execute("qom-set", { path, property: "drive", value: "drive0" }, never);
    await tested.hand.execute("blockdev-del", { "node-name": "other" }, never);
    expect(await tested.picture()).toEqual(before);
  });

  test("when the scratch is used up: at its threshold, before anything fails", async () => {
    const tested = await BackedUpVm.start([{ node: "drive0", size: 32 * MiB }]);
    await tested.write("drive0", 0, 24 * MiB, 9);
    const before = await tested.picture();
    const run = await openRun(tested, 2, [], { scratchSizeMax: 18 * MiB });
    await tested.write("drive0", 0, 12 * MiB, 1);
    await run.pit.assertAlive(never);
    await tested.write("drive0", 12 * MiB, 4 * MiB, 1);
    await expectLost(run, /scratch space of disk dev-drive0 is used up.*--scratch-size/);
    // and what it shows is right to the end
    await expectShows(run.pit.disks[0]!, 0, Buffer.alloc(24 * MiB, 9));
    await expectFailedCleanly(tested, run, before);
  });

  test("with QEMU: nothing is waited for, and the next one starts clean", async () => {
    const tested = await withParent();
    const run = await openRun(tested, 2, LISTED, { qmp: tested.process.qmp });
    await tested.write("drive0", 0, 64 * KiB, 1);
    await tested.quit();
    await expectLost(run, /shut down|closed|hung up/);
    await run.pit.close("failed");
    await run.vm.close();
    expect(tested.warnings).toEqual([]);
    await tested.boot();
    expect(await tested.picture()).toMatchObject({ files: [] });
    // the new bitmap was stored, and names no generation: the old one is the right one
    const next = await openRun(tested, 3, LISTED);
    expect(await changesOf(next.pit.disks[0]!)).toEqual([{ offset: 0, length: 64 * KiB, state: "data" }]);
    await commit(next);
    expect(await tested.bitmaps()).toEqual({
      drive0: [bitmapOf(3, "drive0")],
      drive1: [bitmapOf(3, "drive1")],
    });
  });

  test("with the monitor's connection: taken down over a new one", async () => {
    const tested = await withParent();
    const before = await tested.picture();
    const run = await openRun(tested, 2, LISTED);
    tested.proxy.hangUp();
    await expectLost(run, /connection/);
    await expectFailedCleanly(tested, run, before);
  });

  test("not by what others do to their own", async () => {
    const tested = await withParent();
    await tested.hand.execute("blockdev-add", { driver: "null-co", "node-name": "theirs", size: MiB }, never);
    await tested.hand.execute("blockdev-add", { driver: "null-co", "node-name": "target", size: MiB }, never);
    const run = await openRun(tested, 2, LISTED);
    await tested.hand.execute(
      "blockdev-backup",
      { device: "theirs", target: "target", sync: "none", "job-id": "theirs" },
      never,
    );
    await tested.hand.execute(
      "block-export-add",
      { type: "nbd", id: "theirs", "node-name": "theirs" },
      never,
    );
    await tested.hand.execute("block-export-del", { id: "theirs" }, never);
    await tested.hand.execute("block-job-cancel", { device: "theirs", force: true }, never);
    await expect.poll(() => tested.hand.execute("query-block-jobs", undefined, never)).toHaveLength(2);
    await run.pit.assertAlive(never);
    await commit(run);
  });
});

describe("what belongs to others", () => {
  test("an NBD server with exports: the run ends and names them, and all of theirs stays", async () => {
    const tested = await withParent();
    const path = join(tested.scratchDir, "..", "theirs.sock");
    await tested.hand.execute("nbd-server-start", { addr: { type: "unix", data: { path } } }, never);
    await tested.hand.execute(
      "block-export-add",
      { type: "nbd", id: "libvirt-1", "node-name": "drive0" },
      never,
    );
    expect(await failure(openRun(tested, 2, LISTED))).toMatchObject({
      kind: "locked",
      code: "E_NBD_SERVER_TAKEN",
      message: expect.stringContaining("libvirt-1") as string,
    });
    expect(await tested.survey()).toMatchObject({ exports: [{ id: "libvirt-1" }], jobs: [] });
    expect(await tested.bitmaps()).toEqual({
      drive0: [bitmapOf(1, "drive0")],
      drive1: [bitmapOf(1, "drive1")],
    });
    expect(await tested.picture()).toMatchObject({ files: [], server: "an NBD server ran" });
  });

  test("an NBD server without exports is not ours either", async () => {
    const tested = await withParent();
    const path = join(tested.scratchDir, "..", "theirs.sock");
    await tested.hand.execute("nbd-server-start", { addr: { type: "unix", data: { path } } }, never);
    expect(await failure(openRun(tested, 2, LISTED))).toMatchObject({ code: "E_NBD_SERVER_TAKEN" });
    expect(await tested.picture()).toMatchObject({ files: [], server: "an NBD server ran" });
  });

  test("an export that somebody put into our server keeps it running", async () => {
    const tested = await withParent();
    const run = await openRun(tested, 2, LISTED);
    await tested.hand.execute(
      "block-export-add",
      { type: "nbd", id: "theirs", "node-name": "drive0" },
      never,
    );
    await commit(run);
    expect(await tested.survey()).toMatchObject({ exports: [{ id: "theirs" }] });
    const { socket } = run.pit.disks[0]!;
    expect(await readExport({ ...run.pit.disks[0]!, exportName: "drive0" }, 0, 512)).toHaveLength(512);
    await tested.hand.execute("block-export-del", { id: "theirs" }, never);
    expect(await tested.picture()).toMatchObject({ server: "an NBD server ran" });
    await rm(socket, { force: true });
  });

  test("a mirror job on a disk: the run ends in QEMU's words, and it goes on", async () => {
    const tested = await withParent();
    await tested.hand.execute(
      "blockdev-add",
      { driver: "null-co", "node-name": "copy", size: 16 * MiB },
      never,
    );
    await tested.hand.execute(
      "blockdev-mirror",
      { "job-id": "m", device: "drive1", target: "copy", sync: "full" },
      never,
    );
    const error = await failure(openRun(tested, 2, LISTED));
    expect(error).toMatchObject({ kind: "source", message: expect.stringContaining("mirror") as string });
    expect(await tested.survey()).toMatchObject({ jobs: [{ id: "m" }], exports: [] });
    await tested.hand.execute("block-job-cancel", { device: "m", force: true }, never);
    await expect.poll(() => tested.hand.execute("query-block-jobs", undefined, never)).toEqual([]);
    await commit(await openRun(tested, 3, LISTED));
  });

  test("bitmaps of other names and of another repository", async () => {
    const tested = await withParent();
    const theirs = ["libvirt-1", "bk-G1", bitmapOf(1, "drive0").replace("1111", "2222")].sort();
    for (const name of theirs) {
      await tested.hand.execute("block-dirty-bitmap-add", { node: "drive0", name, persistent: true }, never);
    }
    await commit(await openRun(tested, 2, LISTED));
    expect((await tested.bitmaps())["drive0"]).toEqual([...theirs, bitmapOf(2, "drive0")].sort());
    const failed = await openRun(tested, 3, [known(2, DISKS)]);
    await failed.pit.close("failed");
    expect((await tested.bitmaps())["drive0"]).toEqual([...theirs, bitmapOf(2, "drive0")].sort());
  });

  test("the monitor: one client at a time", async () => {
    const tested = await withParent();
    const run = await openRun(tested, 2, LISTED);
    const busy = QmpClient.connect(tested.process.qmp, never, { greetingMs: 100 });
    expect(await failure(busy)).toMatchObject({ kind: "locked", code: "E_QMP_BUSY" });
    await commit(run);
  });
});
