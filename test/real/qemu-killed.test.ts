import { fork, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { watch } from "node:fs";
import { readdir } from "node:fs/promises";
import { resolve } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import type { KnownGeneration } from "../../src/qemu/bitmaps.ts";
import { clearLeftovers } from "../../src/qemu/recovery.ts";
import type { QemuSourceOptions } from "../../src/qemu/point-in-time.ts";
import {
  BackedUpVm,
  bitmapOf,
  changesOf,
  commit,
  generation,
  known,
  openRun,
  REPOSITORY,
  type TestDisk,
  qemuFor,
} from "../support/backed-up-vm.ts";
import { failure } from "../support/outcomes.ts";
import type { RunOrder } from "../support/qemu-run.ts";

/**
 * SIGKILL after each command that a run gives QEMU, from the first to the last of a committed one, and at what it
 * does besides. Nobody cleans up but the run after it, which finds everything by name and loses no change.
 */
const never = new AbortController().signal;
const KiB = 1024;
const MiB = 1024 * KiB;
const DISKS: readonly TestDisk[] = [
  { node: "drive0", size: 16 * MiB },
  { node: "drive1", size: 16 * MiB },
];
const PROGRAM = resolve(import.meta.dirname, "../support/qemu-run.ts");

function start(
  tested: BackedUpVm,
  number: number,
  listed: readonly KnownGeneration[],
  more: Partial<QemuSourceOptions>,
  guarded = false,
): ChildProcess {
  const order: RunOrder = {
    options: tested.options(more),
    repository: REPOSITORY,
    generation: generation(number),
    listed: listed.map((one) => [
      one.generation,
      Object.fromEntries([...one.disks].map(([name, { size }]) => [name, size])),
    ]),
    guarded,
  };
  const child = fork(PROGRAM, [JSON.stringify(order)], {
    execArgv: [],
    stdio: ["ignore", "ignore", "inherit", "ipc"],
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  return child;
}

async function kill(child: ChildProcess): Promise<void> {
  const ended = once(child, "exit");
  child.kill("SIGKILL");
  await ended;
}

async function runningVm(fleecing: "classic" | "filter" = "classic"): Promise<BackedUpVm> {
  const tested = await BackedUpVm.start(DISKS, [], qemuFor(fleecing));
  await tested.hand.execute("cont", undefined, never);
  await commit(await openRun(tested, 1));
  return tested;
}

/** Commands that change something, of one whole run; and how many of them come before the commit. */
async function stepsOf(
  tested: BackedUpVm,
  fleecing: "classic" | "filter",
): Promise<{ names: readonly string[]; committed: number }> {
  tested.proxy.reset();
  const child = start(tested, 2, [known(1, DISKS)], { fleecing });
  const changing = (): string[] =>
    tested.proxy.commands.map(({ execute }) => execute).filter((name) => !name.startsWith("query-"));
  await once(child, "message");
  const committed = changing().length;
  child.send("go on");
  await once(child, "exit");
  return { names: changing(), committed };
}

describe.each(["classic", "filter"] as const)("%s fleecing", (fleecing) => {
  test(
    "killed after any step: the next run finds all of it and loses nothing",
    { timeout: 300_000 },
    async () => {
      const tested = await runningVm(fleecing);
      const { names, committed } = await stepsOf(tested, fleecing);
      expect(names.length).toBeGreaterThanOrEqual(20);
      const before = (await tested.survey()).nodes.map(({ name }) => name).sort();
      let listed = [known(2, DISKS)];
      for (const [step, name] of names.entries()) {
        const what = `after step ${step}, ${name}`;
        const number = 10 + 2 * step;
        await tested.write("drive0", step * 128 * KiB, 64 * KiB, 1);
        tested.proxy.reset();
        const child = start(tested, number, listed, { fleecing });
        const killed = once(child, "exit");
        let seen = -1;
        tested.proxy.answered = async (command) => {
          if (command.execute.startsWith("query-")) return;
          seen++;
          if (seen === step) await kill(child);
        };
        child.on("message", () => child.send("go on"));
        await killed;
        expect(child.signalCode, what).toBe("SIGKILL");
        tested.proxy.reset();
        await tested.write("drive1", step * 128 * KiB, 64 * KiB, 1);
        // the generation counts as committed once the run began to take down
        const isCommitted = step >= committed;
        if (isCommitted) listed = [known(number, DISKS), ...listed];

        const next = await openRun(tested, number + 1, listed, { fleecing });
        const at = [{ offset: step * 128 * KiB, length: 64 * KiB, state: "data" }];
        expect(await changesOf(next.pit.disks[0]!), what).toEqual(isCommitted ? [] : at);
        expect(await changesOf(next.pit.disks[1]!), what).toEqual(at);
        await commit(next);
        listed = [known(number + 1, DISKS), ...listed];
        const after = await tested.survey();
        expect(after, what).toMatchObject({ status: "running", jobs: [], exports: [] });
        expect(after.nodes.map((node) => node.name).sort(), what).toEqual(before);
        expect(await tested.picture(), what).toMatchObject({ files: [], server: "no NBD server" });
        expect(await tested.bitmaps(), what).toEqual({
          drive0: [bitmapOf(number + 1, "drive0")],
          drive1: [bitmapOf(number + 1, "drive1")],
        });
      }
    },
  );

  test("killed after any step of clearing up: once more clears the rest", { timeout: 300_000 }, async () => {
    const tested = await runningVm(fleecing);
    const before = await tested.picture();
    const listed = [known(1, DISKS)];
    for (let step = 0; ; step++) {
      const victim = start(tested, 100 + step, listed, { fleecing });
      await once(victim, "message");
      await kill(victim);
      // the next one clears what it left, and dies of it
      tested.proxy.reset();
      const cleaner = start(tested, 200 + step, listed, { fleecing });
      const cleared: string[] = [];
      tested.proxy.answered = async ({ execute }) => {
        if (execute.startsWith("query-") || cleared.length > step) return;
        cleared.push(execute);
        if (cleared.length > step) await kill(cleaner);
      };
      await once(cleaner, "exit");
      tested.proxy.reset();
      const vm = await tested.connect("ffffffffffff");
      await vm.close();
      for (const number of [100 + step, 200 + step]) {
        for (const { node } of DISKS) {
          await tested.hand
            .execute("block-dirty-bitmap-remove", { node, name: bitmapOf(number, node) }, never)
            .catch(() => undefined);
        }
      }
      expect(await tested.picture(), `step ${step}`).toEqual(before);
      if (cleared.at(-1) === "blockdev-add") break; // by then it had begun with its own
      expect(step).toBeLessThan(50);
    }
  });
});

test("killed with nothing but its mark, and with images that QEMU does not know", async () => {
  const tested = await runningVm();
  const before = await tested.picture();
  for (const file of [/\.run$/, /-0\.qcow2$/, /-1\.qcow2$/]) {
    const watcher = watch(tested.scratchDir);
    const seen = new Promise<void>((done) =>
      watcher.on("change", (_, name) => file.test(String(name)) && done()),
    );
    const child = start(tested, 2, [], {});
    await seen;
    watcher.close();
    await kill(child);
    await (await tested.connect("ffffffffffff")).close();
    for (const { node } of DISKS) {
      await tested.hand
        .execute("block-dirty-bitmap-remove", { node, name: bitmapOf(2, node) }, never)
        .catch(() => undefined);
    }
    expect(await tested.picture(), String(file)).toEqual(before);
  }
});

test("clearing twice does no harm, and says what there was", async () => {
  const tested = await runningVm();
  const child = start(tested, 2, [known(1, DISKS)], {});
  await once(child, "message");
  await kill(child);
  const { scratchDir } = tested;
  const [said] = await clearLeftovers(tested.hand, { scratchDir }, never);
  for (const thing of ["export bk-", "job bk-", "node bk-", "bitmap bk-", "files bk-"])
    expect(said).toContain(thing);
  expect(await clearLeftovers(tested.hand, { scratchDir }, never)).toEqual([]);
  const vm = await tested.connect("ffffffffffff");
  expect(tested.warnings).toEqual([]);
  await vm.close();
});

test("a run that lives, on another monitor of the VM, is left alone and named", async () => {
  const tested = await runningVm();
  const child = start(tested, 2, [known(1, DISKS)], {});
  await once(child, "message");
  const during = await tested.survey();
  const { scratchDir } = tested;
  const elsewhere = await failure(clearLeftovers(tested.hand, { scratchDir }, never));
  expect(elsewhere).toMatchObject({ kind: "locked", code: "E_VM_BUSY", context: { pid: child.pid } });
  expect(await tested.survey()).toEqual(during);
  const ended = once(child, "exit");
  child.send("go on");
  await ended;
  expect(child.exitCode).toBe(0);
  expect(await clearLeftovers(tested.hand, { scratchDir }, never)).toEqual([]);
});

test("the files of a run on another VM that shares the folder are left alone", async () => {
  const [one, other] = [await runningVm(), await runningVm()];
  const child = start(one, 2, [], {});
  await once(child, "message");
  await kill(child);
  const { scratchDir } = one;
  expect(await clearLeftovers(other.hand, { scratchDir }, never)).toEqual([]);
  const run = await openRun(other, 3, [], { scratchDir });
  await commit(run);
  expect(await clearLeftovers(one.hand, { scratchDir }, never)).toHaveLength(1);
  expect(await one.picture()).toMatchObject({ files: [], server: "no NBD server" });
});

test.each(["classic", "filter"] as const)(
  "the guard clears up when its run is killed: %s",
  async (fleecing) => {
    const tested = await runningVm(fleecing);
    const before = await tested.picture();
    const child = start(tested, 2, [known(1, DISKS)], { fleecing }, true);
    await once(child, "message");
    await kill(child);
    await expect.poll(async () => (await tested.survey()).exports, { timeout: 20_000 }).toEqual([]);
    await expect
      .poll(async () => (await tested.survey()).nodes.length, { timeout: 20_000 })
      .toBe((before as { nodes: unknown[] }).nodes.length);
    await expect.poll(() => readdir(tested.scratchDir)).toEqual([]);
    expect(await tested.bitmaps()).toMatchObject({
      drive0: [bitmapOf(1, "drive0"), bitmapOf(2, "drive0")],
    });
    expect((await tested.survey()).status).toBe("running");
  },
);
