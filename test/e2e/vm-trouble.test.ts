import { once } from "node:events";
import { readdir } from "node:fs/promises";
import { createConnection } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { BackedUpGuest } from "../support/guest/backed-up-guest.ts";
import type { VmGenerationJson, VmRun } from "../support/vm-runs.ts";
import { agent, ALL_READ, monitor } from "../support/guest/steps.ts";
import { mountsWork, mountTmpfs } from "../support/mounts.ts";

/** What goes wrong while a running guest is backed up. The VM runs on, and the next run has all that changed. */
vi.setConfig({ testTimeout: 120_000 });

const never = new AbortController().signal;
const DISK = 64 * MiB;
/** Both disks are exported, and their data is about to be pulled. */
const EXPORTED = monitor("block-export-add", "after", { skip: 1 });

let tested: BackedUpGuest;
let newest: VmGenerationJson;

async function begin(qemu: "system" | "10"): Promise<void> {
  tested = await BackedUpGuest.start({ qemu, disks: 2, diskSize: DISK, writer: true });
  newest = await tested.generation("--freeze", "require", "--freeze-budget", "60");
}

/** The VM runs, its guest writes, and nothing of a run is in it but one bitmap a disk. */
async function expectAtRest(): Promise<void> {
  expect(await tested.leftovers()).toEqual([]);
  for (const names of Object.values(await tested.bitmaps()))
    expect(names).toEqual([expect.stringContaining(newest.generation)]);
  await tested.writerGoesOn();
}

/** The next run has all that changed since the newest generation. */
async function expectNextRunIsRight(kind: "incremental" | "rescan" = "incremental"): Promise<void> {
  const { sequence, generation: parent } = newest;
  tested.truth = "frozen";
  newest = await tested.generation("--freeze", "require", "--freeze-budget", "60");
  expect(newest).toMatchObject({
    kind,
    consistency: "filesystem",
    sequence: sequence + 1,
    parent,
    disks: [{ kind }, { kind }],
  });
  expect(await tested.restore(newest)).toMatchObject({ differ: [] });
  await expectAtRest();
}

/** A run that fails: as if it had never been. */
async function expectFailed(
  exit: number,
  code: string,
  run: () => Promise<VmRun>,
  text: string,
): Promise<void> {
  tested.truth = "none";
  const { code: was, said, stderr } = await run();
  expect(was, stderr).toBe(exit);
  expect(said.at(-1)).toMatchObject({
    level: "error",
    code,
    message: expect.stringContaining(text) as string,
  });
  await expectAtRest();
  await expectNextRunIsRight();
}

/** A run that finds no way to freeze the guest and takes it as it is; its truth is taken while the VM stands. */
async function expectCrashConsistent(run: () => Promise<VmRun>, warning: string): Promise<void> {
  tested.truth = "stopped";
  const { generation, said, stderr } = await run();
  expect(generation, stderr).toMatchObject({ kind: "incremental", consistency: "crash" });
  expect(said.map(({ message }) => message).join("\n")).toContain(warning);
  newest = generation!;
  expect(await tested.restore(newest)).toMatchObject({ differ: [] });
  await expectAtRest();
}

async function inGuest(command: string): Promise<string> {
  return await tested.guest.console.run(command, 60_000);
}

/** A file of 22 MB, none of it zero: overwritten as a whole, its old data is more than a scratch of 16 MiB takes. */
const LARGE = `fill /mnt/large 22000000 "$(printf %01000d 7)"`;
const OVERWRITE = "dd if=/dev/zero of=/mnt/large bs=100000 count=220 conv=notrunc,fsync 2>/dev/null";
const LEFT_OVER = "tr -d '\\0' </mnt/large | wc -c";

describe.each(["system", "10"] as const)("QEMU: %s", (qemu) => {
  beforeAll(() => begin(qemu));
  afterAll(() => tested.close());

  test("a job that another hand cancels: exit 14, and nothing is committed", async () => {
    const cancel = async (): Promise<void> => {
      const { jobs } = await tested.survey();
      await tested.hand.execute("block-job-cancel", { device: jobs[1]!.id, force: true }, never);
    };
    const run = (): Promise<VmRun> => tested.backUpWhile(EXPORTED, cancel);
    await expectFailed(14, "E_POINT_IN_TIME_LOST", run, "the job of disk vd0 has ended");
  });

  test("a scratch that the guest outgrows: exit 14, and the guest does not stand", async () => {
    await inGuest(LARGE);
    await expectNextRunIsRight();
    const run = (): Promise<VmRun> =>
      tested.backUpWhile(ALL_READ, () => inGuest(OVERWRITE), "--scratch-size", "33M");
    await expectFailed(14, "E_POINT_IN_TIME_LOST", run, "scratch space of disk vd0 is used up");
    expect(await inGuest(LEFT_OVER)).toBe("0");
  });
});

describe("the guest", () => {
  beforeAll(() => begin("system"));
  afterAll(() => tested.close());

  test("whose agent hangs is not frozen: a warning, or with --freeze require exit 14", async () => {
    await inGuest("agent hang");
    await expectCrashConsistent(() => tested.backUp(), "did not answer within 3000 ms");
    const required = await tested.backUp("--freeze", "require");
    expect(required.code, required.stderr).toBe(14);
    expect(required.said.at(-1)).toMatchObject({ level: "error", code: "E_AGENT_SILENT" });
    await expectAtRest();
    await inGuest("agent resume");
    await expectNextRunIsRight();
  });

  test("whose hook refuses is not frozen, and the hook is named", async () => {
    await inGuest("echo 'exit 1' > /run/freeze-hook");
    await expectCrashConsistent(() => tested.backUp(), "fsfreeze hook has failed");
    const required = await tested.backUp("--freeze", "require");
    expect(required.code, required.stderr).toBe(14);
    expect(required.said.at(-1)).toMatchObject({ level: "error", code: "E_FREEZE" });
    await expectAtRest();
    await inGuest("rm /run/freeze-hook");
    await expectNextRunIsRight();
  });

  test("whose hook takes longer than the budget is not frozen, then or later", async () => {
    await inGuest("echo '[ $1 = thaw ] || sleep 3' > /run/freeze-hook");
    await expectCrashConsistent(() => tested.backUp("--freeze-budget", "1"), "it took more than 1000 ms");
    await inGuest("rm /run/freeze-hook");
    await expectNextRunIsRight();
  });

  test("that stood frozen for its budget goes on; the instant came too late for a file system", async () => {
    // QEMU's answer comes only when the guest has been heard again
    const held = (): Promise<void> => tested.writerGoesOn();
    const late = monitor("transaction", "before");
    const run = (...flags: string[]): Promise<VmRun> =>
      tested.backUpWhile(late, held, "--freeze-budget", "1", ...flags);
    await expectCrashConsistent(run, "it took longer than 1000 ms");
    await expectFailed(14, "E_FREEZE_OVERRUN", () => run("--freeze", "require"), "longer than 1000 ms");
  });

  test("that was left frozen by a run and a guard that are dead is thawed by the next run", async () => {
    tested.truth = "none";
    const frozen = agent("guest-fsfreeze-freeze", "after");
    expect((await tested.backUpUntil({ at: frozen, guarded: false })).signal).toBe("SIGKILL");
    await expectNextRunIsRight();
  });

  test("whose NBD server somebody else has: exit 11, and it is left alone", async () => {
    const path = join(tested.folder, "foreign.sock");
    await tested.hand.execute("nbd-server-start", { addr: { type: "unix", data: { path } } }, never);
    const foreign = { type: "nbd", id: "foreign", "node-name": "drive0", name: "foreign" };
    await tested.hand.execute("block-export-add", foreign, never);
    const { code, said, stderr } = await tested.backUp();
    expect(code, stderr).toBe(11);
    expect(said.at(-1)).toMatchObject({
      code: "E_NBD_SERVER_TAKEN",
      message: expect.stringContaining("exports foreign") as string,
    });
    expect((await tested.survey()).exports).toEqual([{ id: "foreign", node: "drive0" }]);
    await tested.hand.execute("nbd-server-stop", undefined, never);
    await expectAtRest();
    await expectNextRunIsRight();
  });

  test("whose monitor is busy: exit 11", async () => {
    const other = createConnection(tested.guest.qmp);
    onTestFinished(() => void other.destroy());
    await once(other, "data");
    const { code, said, stderr } = await tested.backUp();
    expect(code, stderr).toBe(11);
    expect(said.at(-1)).toMatchObject({ code: "E_QMP_BUSY" });
    other.destroy();
    await expectNextRunIsRight();
  });

  if (mountsWork()) {
    test("that finds the scratch's file system full stands until it is taken down, and loses no write", async () => {
      mountTmpfs(tested.scratch, 35 * MiB);
      await inGuest(LARGE);
      const overwriteUntilItStands = async (): Promise<void> => {
        await inGuest(`${OVERWRITE} &`);
        await expect.poll(() => tested.survey(), { timeout: 30_000 }).toMatchObject({ status: "io-error" });
      };
      const { code, said, stderr } = await tested.backUpWhile(ALL_READ, overwriteUntilItStands);
      expect(code, stderr).toBe(14);
      expect(said.at(-1)).toMatchObject({ level: "error", code: "E_POINT_IN_TIME_LOST" });
      await expectAtRest();
      await inGuest("while pidof dd; do sleep 0.1; done");
      expect(await inGuest(LEFT_OVER)).toBe("0");
      await expectNextRunIsRight();
    });
  }
});

describe("a guest that ends", () => {
  beforeAll(() => begin("system"));
  afterAll(() => tested.close());

  /** While all is read and nothing committed. */
  async function expectLostWhile(end: () => Promise<void>): Promise<void> {
    tested.truth = "none";
    const { code, said, stderr } = await tested.backUpWhile(ALL_READ, end);
    expect(code, stderr).toBe(14);
    expect(said.at(-1)).toMatchObject({ level: "error", code: "E_POINT_IN_TIME_LOST" });
    expect(await readdir(tested.scratch)).toEqual([]);
    await tested.boot();
  }

  test("powered off by its user: exit 14; QEMU has stored the bitmaps, so the next run is incremental", async () => {
    await expectLostWhile(() => tested.guest.powerOff());
    await expectNextRunIsRight();
  });

  test("killed: exit 14; no bitmap can be trusted, so the next run is a rescan, and list says why", async () => {
    await expectLostWhile(() => tested.guest.kill());
    await expectNextRunIsRight("rescan");
    const { stdout } = await tested.repository.run("list");
    expect(stdout.trimEnd().split("\n").at(-1)).toMatch(/ rescan .* QEMU ended without storing it/);
    await expectNextRunIsRight();
  });
});
