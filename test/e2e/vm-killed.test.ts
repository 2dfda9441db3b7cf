import { watch } from "node:fs";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { BackedUpGuest } from "../support/guest/backed-up-guest.ts";
import type { VmGenerationJson } from "../support/vm-runs.ts";
import { agent, ALL_READ, monitor, type Step } from "../support/guest/steps.ts";

/**
 * SIGKILL at every step of a backup of a running guest: of the program, whose guard then thaws and takes down, or of both,
 * as a service manager does it, which leaves all to the next run. No change is lost.
 *
 * CI takes the steps at which most can go wrong. `BLOCKHAUL_TEST_LONG=1` takes all, each in a full and in an
 * incremental, with a guard and without: 170 runs that are killed, and a quarter of an hour.
 */
const LONG = process.env["BLOCKHAUL_TEST_LONG"] === "1";

vi.setConfig({ testTimeout: 120_000 });

const DISK = 32 * MiB;

/** What a run gets for the freeze where nothing is copied meanwhile, in seconds. */
const BUDGET_S = 5;
/** Until the guest's writer has been heard again, on a machine that is busy. */
const HEARD_MS = 10_000;

interface Point {
  readonly name: string;
  readonly at: Step | (() => Promise<void>);
  /** Whether the generation is there when the program is killed. */
  readonly committed?: boolean;
  /** Whether it can be told at all: the program is killed when a file is seen. */
  readonly unsure?: boolean;
  /** The kind of run that has this step; both unless told. */
  readonly only?: "incremental";
  readonly ci?: readonly Case[];
}

/** What is killed: the run alone, or with its guard. */
type Case = `${"full" | "incremental"}${"" | " and its guard"}`;
const ALL: readonly Case[] = ["full", "incremental", "full and its guard", "incremental and its guard"];

let tested: BackedUpGuest;
let newest: VmGenerationJson;

beforeAll(async () => {
  tested = await BackedUpGuest.start({ disks: 2, diskSize: DISK, writer: true });
  tested.flags = ["--freeze", "require", "--scratch-size", "48M"];
  newest = await tested.generation("--freeze-budget", "60");
});
afterAll(() => tested.close());

/** Resolves when something has come to be in the repository. */
function stored(file: RegExp): () => Promise<void> {
  return () =>
    new Promise((done) => {
      const watcher = watch(tested.repository.location, { recursive: true }, (_, name) => {
        if (name === null || !file.test(name)) return;
        watcher.close();
        done();
      });
    });
}

/** The monitor's commands until the instant is taken and the agent's, in their order, then what follows the commit. */
const POINTS: readonly Point[] = [
  { name: "nothing yet: before the first look at the VM", at: monitor("query-status", "before") },
  { name: "after the last question", at: monitor("query-qmp-schema", "after") },
  { name: "the guard's sync, before", at: agent("guest-sync-delimited", "before") },
  { name: "the guard's sync, after", at: agent("guest-sync-delimited", "after") },
  { name: "the guard asks whether the guest is frozen, after", at: agent("guest-fsfreeze-status", "after") },
  { name: "the first scratch file, before", at: monitor("blockdev-add", "before") },
  { name: "the first scratch image, after", at: monitor("blockdev-add", "after", { skip: 1 }) },
  { name: "its threshold, before", at: monitor("block-set-write-threshold", "before") },
  { name: "its threshold, after", at: monitor("block-set-write-threshold", "after") },
  {
    name: "the last scratch image, after",
    at: monitor("blockdev-add", "after", { skip: 3 }),
    ci: ["incremental and its guard"],
  },
  { name: "the NBD server, before", at: monitor("nbd-server-start", "before") },
  { name: "the NBD server, after", at: monitor("nbd-server-start", "after") },
  { name: "the sync before the freeze, before", at: agent("guest-sync-delimited", "before", { skip: 1 }) },
  { name: "the freeze, before", at: agent("guest-fsfreeze-freeze", "before") },
  { name: "the freeze, after", at: agent("guest-fsfreeze-freeze", "after"), ci: ["incremental"] },
  { name: "the instant, before", at: monitor("transaction", "before"), ci: ["incremental"] },
  {
    name: "the instant, after",
    at: monitor("transaction", "after"),
    ci: ["full", "incremental and its guard"],
  },
  { name: "the thaw, before", at: agent("guest-fsfreeze-thaw", "before"), ci: ["incremental"] },
  { name: "the thaw, after", at: agent("guest-fsfreeze-thaw", "after") },
  { name: "the first export, before", at: monitor("block-export-add", "before") },
  { name: "the first export, after", at: monitor("block-export-add", "after") },
  {
    name: "the last export, after",
    at: monitor("block-export-add", "after", { skip: 1 }),
    ci: ["incremental"],
  },
  {
    name: "data is being pulled",
    at: stored(/^\.tmp\/.*packs/),
    unsure: true,
    ci: ["full and its guard", "incremental"],
  },
  { name: "the index is being stored", at: stored(/^index\//), unsure: true },
  { name: "the manifest is being stored", at: stored(/^generations\//), unsure: true, ci: ["incremental"] },
  {
    name: "the last look at the jobs, before",
    at: ALL_READ,
  },
  {
    name: "the last look at the jobs, after: all is read, nothing is committed",
    at: monitor("query-jobs", "after", { since: "block-export-add" }),
    ci: ["incremental and its guard"],
  },
  {
    name: "the manifest is committed, nothing is taken down",
    at: monitor("query-status", "before", { since: "block-export-add" }),
    committed: true,
    ci: ["full", "incremental and its guard"],
  },
  { name: "the first export is deleted, before", at: monitor("block-export-del", "before"), committed: true },
  { name: "the first export is deleted, after", at: monitor("block-export-del", "after"), committed: true },
  { name: "the first job is cancelled, before", at: monitor("block-job-cancel", "before"), committed: true },
  {
    name: "the first job is cancelled, after",
    at: monitor("block-job-cancel", "after"),
    committed: true,
    ci: ["incremental and its guard"],
  },
  { name: "the NBD server is stopped, before", at: monitor("nbd-server-stop", "before"), committed: true },
  { name: "the NBD server is stopped, after", at: monitor("nbd-server-stop", "after"), committed: true },
  { name: "the first node is removed, before", at: monitor("blockdev-del", "before"), committed: true },
  { name: "the first node is removed, after", at: monitor("blockdev-del", "after"), committed: true },
  {
    name: "the last node is removed, after",
    at: monitor("blockdev-del", "after", { skip: 3 }),
    committed: true,
  },
  {
    name: "the first copy of a bitmap is removed, after",
    at: monitor("block-dirty-bitmap-remove", "after"),
    committed: true,
    only: "incremental",
  },
  {
    name: "the old bitmaps are removed, before",
    at: monitor("transaction", "before", { since: "blockdev-del" }),
    committed: true,
    ci: ["incremental"],
  },
  {
    name: "the old bitmaps are removed, after",
    at: monitor("transaction", "after", { since: "blockdev-del" }),
    committed: true,
  },
];

const CASES = ALL.flatMap((killed) =>
  POINTS.filter(({ only = "", ci }) => killed.startsWith(only) && (LONG || ci?.includes(killed))).map(
    (point) => ({ killed, ...point }),
  ),
);

test.each(CASES)("$killed: $name", async ({ killed, at, committed = false, unsure = false }) => {
  const before = newest;
  const guarded = !killed.endsWith("guard");
  // what comes to be has to be compared with a copy, for which the guest stands frozen longer than it should
  const copied = committed || unsure;
  tested.truth = copied ? "frozen" : "none";
  tested.truths.clear();
  const budget = ["--freeze-budget", copied ? "60" : String(BUDGET_S)];
  const flags = killed.startsWith("full") ? ["--full", ...budget] : budget;
  const run = await tested.backUpUntil({ at: typeof at === "function" ? at() : at, guarded }, ...flags);
  expect(run.signal, run.stderr).toBe("SIGKILL");
  if (guarded) await tested.writerGoesOn(BUDGET_S * 1000 + HEARD_MS);
  const [lost] = tested.truths.keys();

  tested.truth = "frozen";
  newest = await tested.generation("--freeze-budget", "60");
  expect(await tested.leftovers()).toEqual([]);
  await tested.writerGoesOn();
  const came = unsure ? newest.parent === lost : committed;
  expect(newest).toMatchObject({
    kind: "incremental",
    consistency: "filesystem",
    sequence: before.sequence + (came ? 2 : 1),
    parent: came ? lost : before.generation,
    disks: [{ kind: "incremental" }, { kind: "incremental" }],
  });
  for (const names of Object.values(await tested.bitmaps()))
    expect(names).toEqual([expect.stringContaining(newest.generation)]);
  expect(await tested.restore(newest)).toMatchObject({ differ: [] });
  if (came) expect(await tested.restore({ ...newest, generation: lost! })).toMatchObject({ differ: [] });
  await expect.poll(() => tested.guards(), { timeout: 20_000 }).toEqual([]);
});
