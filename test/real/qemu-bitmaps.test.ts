import { execFile } from "node:child_process";
import { copyFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, test } from "vitest";
import type { KnownGeneration } from "../../src/qemu/bitmaps.ts";
import {
  BackedUpVm,
  bitmapOf,
  changesOf,
  commit,
  known,
  openRun,
  type TestDisk,
} from "../support/backed-up-vm.ts";
import { failure } from "../support/outcomes.ts";
import type { Verdict } from "../support/qmp-proxy.ts";

/** The table "Bitmap life cycle" of the design, each row done to a real QEMU. */
const never = new AbortController().signal;
const run = promisify(execFile);
const KiB = 1024;
const MiB = 1024 * KiB;
const DISKS: readonly TestDisk[] = [{ node: "drive0", size: 16 * MiB }];
const LISTED = [known(1, DISKS)];
const DISK = "dev-drive0";

/** With generation 1 committed and 64 KiB at 1 MiB written since. */
async function withParent(disks = DISKS): Promise<BackedUpVm> {
  const tested = await BackedUpVm.start(disks);
  await commit(await openRun(tested, 1));
  await tested.write("drive0", MiB, 64 * KiB, 1);
  return tested;
}

/** Opens generation 2 and tells what the disk's way is. */
async function nextOf(
  tested: BackedUpVm,
  listed: readonly KnownGeneration[] = LISTED,
): Promise<{ reason: string; changes: object[] | undefined; left: readonly string[] }> {
  const next = await openRun(tested, 2, listed);
  const way = next.ways.get(DISK)!;
  const changes = way.bitmap === undefined ? undefined : await changesOf(next.pit.disks[0]!);
  await commit(next);
  return { reason: way.reason, changes, left: Object.values(await tested.bitmaps())[0]! };
}

function at(offset: number, length = 64 * KiB): object {
  return { offset, length, state: "data" };
}

async function command(tested: BackedUpVm, name: string, args: object): Promise<void> {
  await tested.hand.execute(name, args, never);
}

describe("incremental after", () => {
  test("a clean stop and start", async () => {
    const tested = await withParent();
    await tested.quit();
    await tested.boot();
    expect((await nextOf(tested)).changes).toEqual([at(MiB)]);
  });

  test("offline writes by QEMU's own tools", async () => {
    const tested = await withParent();
    await tested.quit();
    await run("qemu-io", ["-f", "qcow2", "-c", "write 4M 64k", tested.disks[0]!.path]);
    await tested.boot();
    expect((await nextOf(tested)).changes).toEqual([at(MiB), at(4 * MiB)]);
  });

  test("a snapshot over it and a commit back", async () => {
    const tested = await withParent();
    await snapshot(tested);
    await tested.write("drive0", 8 * MiB, 64 * KiB, 2);
    await commitBack(tested);
    expect((await nextOf(tested)).changes).toEqual([at(MiB), at(8 * MiB)]);
  });

  test("an internal snapshot", async () => {
    const tested = await withParent();
    await command(tested, "blockdev-snapshot-internal-sync", { device: "drive0", name: "s" });
    expect((await nextOf(tested)).changes).toEqual([at(MiB)]);
  });

  test("the image is replaced by an older copy of itself: on the older generation", async () => {
    const tested = await withParent();
    await tested.quit();
    const { path } = tested.disks[0]!;
    await copyFile(path, `${path}.old`);
    await tested.boot();
    await commit(await openRun(tested, 3, LISTED));
    await tested.quit();
    await copyFile(`${path}.old`, path);
    await tested.boot();
    const next = await nextOf(tested, [known(3, DISKS), ...LISTED]);
    expect(next).toMatchObject({ changes: [at(MiB)], left: [bitmapOf(2, "drive0")] });
  });

  test("the form that disables the old bitmap was left half-way", async () => {
    const tested = await withParent();
    const [parent, successor] = [bitmapOf(1, "drive0"), bitmapOf(9, "drive0")];
    const actions = [
      { type: "block-dirty-bitmap-disable", data: { node: "drive0", name: parent } },
      { type: "block-dirty-bitmap-add", data: { node: "drive0", name: successor, persistent: true } },
    ];
    await command(tested, "transaction", { actions });
    await tested.write("drive0", 2 * MiB, 64 * KiB, 1);
    await tested.quit();
    await tested.boot();
    await tested.write("drive0", 3 * MiB, 64 * KiB, 1);
    const next = await nextOf(tested);
    expect(next).toMatchObject({
      changes: [at(MiB), at(2 * MiB), at(3 * MiB)],
      left: [bitmapOf(2, "drive0")],
    });
  });
});

describe("read as a whole after", () => {
  test("SIGKILL of QEMU: the loaded bitmap is inconsistent, and goes with the commit", async () => {
    const tested = await withParent();
    await tested.quit();
    await tested.boot();
    process.kill(tested.process.pid, "SIGKILL");
    await tested.process.exited;
    await tested.boot();
    expect(await nextOf(tested)).toEqual({
      reason: expect.stringContaining("without storing its bitmap") as string,
      changes: undefined,
      left: [bitmapOf(2, "drive0")],
    });
  });

  test("SIGKILL of QEMU: the bitmap of that session is not there", async () => {
    const tested = await withParent();
    process.kill(tested.process.pid, "SIGKILL");
    await tested.process.exited;
    await tested.boot();
    expect((await nextOf(tested)).reason).toContain("has no bitmap of generation");
  });

  test.each(["raw", "qcow2 of version 2"])("a restart, with %s", async (kind) => {
    const disks: readonly TestDisk[] = [
      kind === "raw" ? { ...DISKS[0]!, format: "raw" } : { ...DISKS[0]!, create: ["-o", "compat=0.10"] },
    ];
    const tested = await withParent(disks);
    await tested.quit();
    await tested.boot();
    expect((await nextOf(tested)).reason).toContain("keeps none when QEMU ends");
  });

  test("a snapshot: the bitmap is on the image below, and stays there", async () => {
    const tested = await withParent();
    await snapshot(tested);
    const next = await nextOf(tested);
    expect(next.reason).toContain("snapshot was made over it");
    await commitBack(tested);
    expect(await tested.bitmaps()).toEqual({ drive0: [bitmapOf(1, "drive0")] });
  });

  test("it grew, and again after it shrank", async () => {
    const tested = await withParent();
    await command(tested, "block_resize", { "node-name": "drive0", size: 20 * MiB });
    expect((await nextOf(tested)).reason).toBe("its size changed from 16.0 MiB to 20.0 MiB");
    await command(tested, "block_resize", { "node-name": "drive0", size: 12 * MiB });
    const shrunk = await openRun(tested, 3, [known(2, [{ node: "drive0", size: 20 * MiB }])]);
    expect(shrunk.ways.get(DISK)!.reason).toBe("its size changed from 20.0 MiB to 12.0 MiB");
    await commit(shrunk);
  });

  test("qemu-img convert", async () => {
    const tested = await withParent();
    await tested.quit();
    const { path } = tested.disks[0]!;
    await run("qemu-img", ["convert", "-O", "qcow2", path, `${path}.new`]);
    await copyFile(`${path}.new`, path);
    await tested.boot();
    expect((await nextOf(tested)).reason).toContain("image was replaced");
  });

  test("disabled by another hand: it goes with the new one's beginning", async () => {
    const tested = await withParent();
    await command(tested, "block-dirty-bitmap-disable", { node: "drive0", name: bitmapOf(1, "drive0") });
    const next = await openRun(tested, 2, LISTED);
    expect(next.ways.get(DISK)!.reason).toContain("disabled");
    await next.pit.close("failed");
    await next.vm.close();
    expect(await tested.bitmaps()).toEqual({ drive0: [] });
  });

  test("disks change places", async () => {
    const disks: readonly TestDisk[] = [...DISKS, { node: "drive1", size: 16 * MiB }];
    const tested = await BackedUpVm.start(disks);
    await commit(await openRun(tested, 1));
    await tested.quit();
    const [zero, one] = tested.disks.map(({ path }) => path);
    await copyFile(zero!, `${zero!}.aside`);
    await copyFile(one!, zero!);
    await copyFile(`${zero!}.aside`, one!);
    await tested.boot();
    const next = await openRun(tested, 2, [known(1, disks)]);
    expect([...next.ways.values()].map(({ reason }) => reason)).toEqual([
      expect.stringContaining("disk dev-drive1"),
      expect.stringContaining("disk dev-drive0"),
    ]);
    await commit(next);
    expect(await tested.bitmaps()).toEqual({
      drive0: [bitmapOf(2, "drive0")],
      drive1: [bitmapOf(2, "drive1")],
    });
  });
});

test("a bitmap that changes between plan and instant is noticed", async () => {
  const tested = await withParent();
  tested.proxy.decide = async ({ execute }): Promise<Verdict> => {
    // the run has looked already; now somebody else comes
    if (execute === "query-qmp-schema") {
      await command(tested, "block-dirty-bitmap-disable", { node: "drive0", name: bitmapOf(1, "drive0") });
    }
    return "pass";
  };
  expect(await failure(openRun(tested, 2, LISTED))).toMatchObject({
    kind: "source",
    code: "E_PARENT_BITMAP",
  });
});

test("two repositories back up one VM in turns, and neither hurts the other", async () => {
  const tested = await withParent();
  const other = { repository: "99999999-2222-4333-8444-555555555555" };
  const theirs = await openRun(tested, 5, [], {}, other);
  await commit(theirs);
  await tested.write("drive0", 2 * MiB, 64 * KiB, 1);
  expect((await nextOf(tested)).changes).toEqual([at(MiB), at(2 * MiB)]);
  const again = await openRun(tested, 6, [known(5, DISKS)], {}, other);
  expect(await changesOf(again.pit.disks[0]!)).toEqual([at(2 * MiB)]);
  await commit(again);
  expect((await tested.bitmaps())["drive0"]).toHaveLength(2);
});

async function snapshot(tested: BackedUpVm): Promise<void> {
  const overlay = join(tested.scratchDir, "..", "overlay.qcow2");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", overlay, String(16 * MiB)]);
  const file = { driver: "file", filename: overlay };
  await command(tested, "blockdev-add", { driver: "qcow2", "node-name": "overlay", file, backing: null });
  await command(tested, "blockdev-snapshot", { node: "drive0", overlay: "overlay" });
}

async function commitBack(tested: BackedUpVm): Promise<void> {
  const events = tested.hand.listen(["BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED"]);
  await command(tested, "block-commit", { device: "overlay", "job-id": "commit" });
  await events.next(({ event }) => event === "BLOCK_JOB_READY", never);
  await command(tested, "block-job-complete", { device: "commit" });
  await events.next(({ event }) => event === "BLOCK_JOB_COMPLETED", never);
  events.close();
}
