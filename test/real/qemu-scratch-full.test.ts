import { execFile } from "node:child_process";
import { open, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { beforeAll, expect, test } from "vitest";
import { clearLeftovers } from "../../src/qemu/recovery.ts";
import { BackedUpVm, expectShows, openRun, readExport, qemuFor } from "../support/backed-up-vm.ts";
import { bootSector, GUEST_BYTE } from "../support/boot-sector.ts";
import { failure } from "../support/outcomes.ts";
import { mountsWork, mountTmpfs } from "../support/mounts.ts";

/** A guest that overwrites its disk while the scratch folder runs full. */
const never = new AbortController().signal;
const run = promisify(execFile);
const MiB = 1024 * 1024;
const SIZE = 32 * MiB;
const OLD = 0x0d;
const LITTLE = 4 * MiB;
/** More than the scratch may take. */
const MUCH = 24 * MiB;

/** @param length of what the guest will overwrite once it runs, from 1 MiB on. */
async function vmWithGuest(length: number, fleecing: "classic" | "filter" = "classic"): Promise<BackedUpVm> {
  const tested = await BackedUpVm.start([{ node: "drive0", size: SIZE }], [], qemuFor(fleecing));
  await tested.quit();
  const { path } = tested.disks[0]!;
  const sector = join(tested.scratchDir, "..", "sector");
  await writeFile(sector, bootSector(MiB, MiB + length));
  const commands = [`write -s ${sector} 0 512`, `write -P ${OLD} ${MiB} ${length}`];
  await run("qemu-io", ["-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), path]);
  await tested.boot();
  // as fine as the guest's writes: a coarser one would call the last half-written bit done
  const seen = { node: "drive0", name: "seen", granularity: 32 * 1024 };
  await tested.hand.execute("block-dirty-bitmap-add", seen, never);
  return tested;
}

/** Resolves when the guest has written all. */
async function guestIsDone(tested: BackedUpVm, length: number): Promise<void> {
  const written = async (): Promise<number | undefined> =>
    (await tested.survey()).nodes
      .find(({ name }) => name === "drive0")
      ?.bitmaps.find(({ name }) => name === "seen")?.dirtyBytes;
  await expect.poll(written, { timeout: 50_000 }).toBe(length);
}

async function expectWritten(tested: BackedUpVm, length: number): Promise<void> {
  await guestIsDone(tested, length);
  await tested.quit();
  const { stdout } = await run("qemu-io", [
    "-f",
    "qcow2",
    "-c",
    `read -P ${GUEST_BYTE} ${MiB} ${length}`,
    tested.disks[0]!.path,
  ]);
  expect(stdout).not.toContain("failed");
}

test("the guest of this file writes what it should", async () => {
  const tested = await vmWithGuest(LITTLE);
  await tested.hand.execute("cont", undefined, never);
  await expectWritten(tested, LITTLE);
});

test.each(["classic", "filter"] as const)(
  "with room enough, a busy guest is fleeced to the last byte: %s",
  async (fleecing) => {
    const tested = await vmWithGuest(LITTLE, fleecing);
    const { pit, vm } = await openRun(tested, 1, [], { fleecing });
    await tested.hand.execute("cont", undefined, never);
    await guestIsDone(tested, LITTLE);
    await expectShows(pit.disks[0]!, MiB, Buffer.alloc(LITTLE, OLD));
    await pit.assertAlive(never);
    await pit.close("committed");
    await vm.close();
    await expectWritten(tested, LITTLE);
  },
);

/** A folder with 18 MiB for the run, and not a byte more. */
async function tightVm(
  fleecing: "classic" | "filter",
): Promise<{ tested: BackedUpVm; fill: () => Promise<void> }> {
  const tested = await vmWithGuest(MUCH, fleecing);
  mountTmpfs(tested.scratchDir, 40 * MiB);
  const fill = async (): Promise<void> => {
    const file = await open(join(tested.scratchDir, "filler"), "w");
    try {
      const block = Buffer.alloc(64 * 1024, 1);
      for (;;) await file.write(block);
    } catch {
      await file.close();
    }
  };
  return { tested, fill };
}

beforeAll(() => {
  expect(mountsWork(), "these tests mount a small file system").toBe(true);
});

test("classic: the VM stands with an I/O error, the run is told, and the guest loses nothing", async () => {
  const { tested, fill } = await tightVm("classic");
  const { pit, vm } = await openRun(tested, 1, [], { scratchSizeMax: 18 * MiB });
  await fill();
  await tested.hand.execute("cont", undefined, never);
  expect(await failure(pit.lost)).toMatchObject({ code: "E_POINT_IN_TIME_LOST" });
  // too late, as if it had been busy
  await expect.poll(async () => (await tested.survey()).status, { timeout: 20_000 }).toBe("io-error");
  await expectShows(pit.disks[0]!, MiB, Buffer.alloc(MiB, OLD));
  await pit.close("failed");
  await vm.close();
  await rm(join(tested.scratchDir, "filler"));
  expect(await tested.picture()).toMatchObject({ status: "running", files: [], jobs: [] });
  expect(tested.warnings).toEqual([]);
  await expectWritten(tested, MUCH);
});

test("classic: the next run, or the guard, gets the VM going again", async () => {
  const { tested, fill } = await tightVm("classic");
  const { vm } = await openRun(tested, 1, [], { scratchSizeMax: 18 * MiB });
  await fill();
  await tested.hand.execute("cont", undefined, never);
  await expect.poll(async () => (await tested.survey()).status, { timeout: 20_000 }).toBe("io-error");
  await vm.close(); // as if it had died
  const { scratchDir } = tested;
  await clearLeftovers(tested.hand, { token: "000000000001", scratchDir }, never);
  expect((await tested.survey()).status).toBe("running");
  await clearLeftovers(tested.hand, { token: "000000000001", scratchDir }, never);
  await rm(join(scratchDir, "filler"));
  expect(await tested.picture()).toMatchObject({ files: [] });
  await expectWritten(tested, MUCH);
});

test("filter: the guest notices nothing, and reading the view fails", async () => {
  const { tested, fill } = await tightVm("filter");
  const { pit, vm } = await openRun(tested, 1, [], { scratchSizeMax: 18 * MiB, fleecing: "filter" });
  await fill();
  await tested.hand.execute("cont", undefined, never);
  await guestIsDone(tested, MUCH);
  expect((await tested.survey()).status).toBe("running");
  expect(await failure(readExport(pit.disks[0]!, MiB, MiB))).toMatchObject({
    kind: "source",
    code: "E_NBD_READ",
  });
  expect(await failure(pit.assertAlive(never))).toMatchObject({ code: "E_POINT_IN_TIME_LOST" });
  await pit.close("failed");
  await vm.close();
  await rm(join(tested.scratchDir, "filler"));
  expect(await tested.picture()).toMatchObject({ status: "running", files: [] });
  await expectWritten(tested, MUCH);
});

/** The scratch lies on a medium that takes no more of the old data. */
function breakScratch(tested: BackedUpVm): void {
  tested.proxy.rewrite = (command) => {
    const { driver, "node-name": name, ...file } = command.arguments ?? {};
    if (command.execute !== "blockdev-add" || driver !== "file") return command.arguments;
    const broken = [{ event: "none", iotype: "write", errno: 5 }];
    return { driver: "blkdebug", "node-name": name, image: { driver, ...file }, "inject-error": broken };
  };
}

test.each(["classic", "filter"] as const)(
  "a broken scratch (EIO): the run fails and is taken down, the next one is whole: %s",
  async (fleecing) => {
    const tested = await vmWithGuest(LITTLE, fleecing);
    breakScratch(tested);
    const { pit, vm } = await openRun(tested, 1, [], { fleecing });
    await tested.hand.execute("cont", undefined, never);
    if (fleecing === "classic") {
      // QEMU tells the guest of it too, which the README warns of
      expect(await failure(pit.lost)).toMatchObject({ code: "E_POINT_IN_TIME_LOST" });
      expect(await failure(pit.assertAlive(never))).toMatchObject({ code: "E_POINT_IN_TIME_LOST" });
    } else {
      await guestIsDone(tested, LITTLE); // it notices nothing; what was read before is right, no more can be
      const read = await failure(readExport(pit.disks[0]!, MiB, MiB));
      expect(read).toMatchObject({ kind: "source", code: "E_NBD_READ" });
    }
    await pit.close("failed");
    await vm.close();
    expect(await tested.picture()).toMatchObject({ status: "running", jobs: [], exports: [], files: [] });
    tested.proxy.reset();
    const next = await openRun(tested, 2, [], { fleecing });
    await next.pit.assertAlive(never);
    await next.pit.close("committed");
    await next.vm.close();
    if (fleecing === "filter") await expectWritten(tested, LITTLE);
  },
);
