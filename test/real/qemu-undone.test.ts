import { describe, expect, test } from "vitest";
import {
  BackedUpVm,
  bitmapOf,
  changesOf,
  commit,
  known,
  openRun,
  type TestDisk,
  qemuFor,
} from "../support/backed-up-vm.ts";
import { failure } from "../support/outcomes.ts";
import type { Verdict } from "../support/qmp-proxy.ts";

/**
 * Each command of an opening fails once, in three ways: QEMU refuses it; it is executed and the connection is lost;
 * it is executed and the user has had enough. Each time everything must be as it was before.
 */
const never = new AbortController().signal;
const KiB = 1024;
const MiB = 1024 * KiB;
const DISKS: readonly TestDisk[] = [
  { node: "drive0", size: 16 * MiB },
  { node: "drive1", size: 16 * MiB },
];
const LISTED = [known(1, DISKS)];

async function runningVm(fleecing: "classic" | "filter"): Promise<BackedUpVm> {
  const tested = await BackedUpVm.start(DISKS, [], qemuFor(fleecing));
  await tested.hand.execute("cont", undefined, never);
  await commit(await openRun(tested, 1));
  return tested;
}

/** A VM that was stopped goes on before anything is taken down. */
function expectSoonResumed(tested: BackedUpVm, what: string): void {
  const names = tested.proxy.commands.map(({ execute }) => execute);
  const stopped = names.indexOf("stop");
  if (stopped < 0) return;
  const meanwhile = names.slice(stopped, names.indexOf("cont", stopped));
  expect(meanwhile, what).not.toContain("nbd-server-stop");
  expect(meanwhile, what).not.toContain("blockdev-del");
}

describe.each(["classic", "filter"] as const)("%s fleecing", (fleecing) => {
  /** Names of the commands of an opening that goes well, the run's first to its last. */
  async function commandsOf(tested: BackedUpVm): Promise<readonly string[]> {
    tested.proxy.reset();
    const run = await openRun(tested, 2, LISTED, { fleecing });
    const names = tested.proxy.commands.map(({ execute }) => execute);
    await run.pit.close("failed");
    await run.vm.close();
    tested.proxy.reset();
    return names;
  }

  test.each(["refused", "the connection lost", "interrupted"] as const)(
    "any command %s: everything is as it was",
    async (how) => {
      const tested = await runningVm(fleecing);
      const before = await tested.picture();
      const commands = await commandsOf(tested);
      expect(await tested.picture()).toEqual(before);
      expect(commands.length).toBeGreaterThan(20);
      for (const [number, name] of commands.entries()) {
        const run = new AbortController();
        tested.proxy.decide = (command): Verdict => {
          if (command.number !== number) return "pass";
          if (how === "refused") return "refuse";
          if (how === "the connection lost") return "drop";
          run.abort(new Error("interrupted"));
          return "pass";
        };
        const options = { signal: run.signal };
        const error = await failure(openRun(tested, 2, LISTED, { fleecing }, options)).catch(
          (none: unknown) => none,
        );
        const what = `${number}: ${name} ${how}`;
        expect(error, what).toBeInstanceOf(Error);
        expectSoonResumed(tested, what);
        tested.proxy.reset();
        expect(await tested.picture(), what).toEqual(before);
      }
      // and nothing was lost
      await tested.write("drive1", 0, 64 * KiB, 1);
      const next = await openRun(tested, 3, LISTED, { fleecing });
      expect(await changesOf(next.pit.disks[1]!)).toEqual([{ offset: 0, length: 64 * KiB, state: "data" }]);
      await commit(next);
      expect(await tested.bitmaps()).toEqual({
        drive0: [bitmapOf(3, "drive0")],
        drive1: [bitmapOf(3, "drive1")],
      });
      expect((await tested.survey()).status).toBe("running");
    },
  );
});
