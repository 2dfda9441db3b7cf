import { hasCode, messageOf } from "../errors.ts";
import { pause } from "../flow/retry.ts";
import { staleBitmaps, type PlacedBitmap } from "./bitmaps.ts";
import type { RunDisk } from "./fleecing.ts";
import type { Guard } from "./guard/guard.ts";
import { surveyVm, type Vm } from "./inventory.ts";
import type { RunNames } from "./names.ts";
import { QmpClient } from "./qmp/client.ts";
import { clearLeftovers, removeFiles } from "./recovery.ts";
import type { RunFile } from "./run-file.ts";

/** What became of the generation; see `QemuPointInTime.close`. */
export type Outcome = "committed" | "failed" | "unknown";

/** How long taking down may take, in milliseconds. */
const END_MS = 120_000;

/** How long a VM that hung up on us may take to greet again, in milliseconds. */
const RECONNECT_MS = 5000;
const RECONNECT_STEP_MS = 50;

/** What anything that has made a run file leaves in QEMU and beside it goes by. */
export interface MarkedRun {
  readonly client: QmpClient;
  readonly names: RunNames;
  readonly mark: RunFile;
  readonly scratchDir: string;
  warn(message: string): void;
}

/** All that a backup has, as far as it came. */
export interface RunState extends MarkedRun {
  readonly disks: readonly RunDisk[];
  readonly plan: { readonly repository: string; readonly generation: string };
  readonly guard: Pick<Guard, "finish"> | undefined;
}

/**
 * Takes down what the run has made, then removes the bitmaps that the outcome makes superfluous. What cannot be done
 * is left to the next run, with a warning. Never throws.
 */
export async function endRun(run: RunState, outcome: Outcome): Promise<void> {
  await takeDown(run, (client, signal) =>
    removeBitmaps(client, (vm) => superfluous(vm, run, outcome), signal),
  );
  await run.guard?.finish();
}

/**
 * Takes down whatever bears the run's names, within a bound of time, whatever stopped the run. What cannot be done is
 * left to the next run, with a warning. Never throws.
 *
 * @param then what is to be done behind it, if that worked and QEMU is still there.
 */
export async function takeDown(
  run: MarkedRun,
  then: (client: QmpClient, signal: AbortSignal) => Promise<void> = () => Promise.resolve(),
): Promise<void> {
  const { mark, warn } = run;
  const signal = AbortSignal.timeout(END_MS);
  try {
    await clearAway(run, then, signal).catch((error: unknown) => {
      if (!hasCode(error, "E_QMP_GONE")) throw error;
      return clearAway(run, then, signal); // hung up on in the middle: QEMU has ended, or is there again
    });
  } catch (error) {
    warn(`Not everything of this run could be taken down in QEMU, the next one will: ${messageOf(error)}`);
    await mark.giveUp().catch(() => undefined); // what marks the run may be what could not be written
  }
}

async function clearAway(
  run: MarkedRun,
  then: (client: QmpClient, signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  const { names, scratchDir } = run;
  const client = await reachable(run.client, signal);
  if (client === undefined) {
    await removeFiles(names.token, scratchDir); // QEMU is gone, and with it everything else
    return;
  }
  try {
    await clearLeftovers(client, { token: names.token, scratchDir }, signal);
    await then(client, signal);
  } finally {
    if (client !== run.client) await client.close();
  }
}

function superfluous(vm: Vm, { disks, plan }: RunState, outcome: Outcome): readonly PlacedBitmap[] {
  switch (outcome) {
    case "committed": {
      const names = new Set(disks.map(({ disk }) => disk.name));
      const ours = vm.disks.filter((disk) => names.has(disk.name));
      return staleBitmaps(ours, plan.repository, plan.generation);
    }
    case "failed": {
      const names = new Map(disks.map(({ disk, newBitmap }) => [newBitmap, disk.name]));
      return vm.nodes.flatMap(({ name: node, bitmaps }) =>
        bitmaps.flatMap(({ name }) => {
          const disk = names.get(name);
          return disk === undefined ? [] : { disk, node, name, generation: plan.generation };
        }),
      );
    }
    case "unknown":
      return [];
  }
}

/** In one transaction: all go, or none. */
async function removeBitmaps(
  client: QmpClient,
  choose: (vm: Vm) => readonly PlacedBitmap[],
  signal: AbortSignal,
): Promise<void> {
  const bitmaps = choose(await surveyVm(client, signal));
  if (bitmaps.length === 0) return;
  const actions = bitmaps.map(({ node, name }) => ({
    type: "block-dirty-bitmap-remove",
    data: { node, name },
  }));
  await client.execute("transaction", { actions }, signal);
}

/** The client itself, or a new one when its connection is over; undefined when QEMU is gone. */
async function reachable(client: QmpClient, signal: AbortSignal): Promise<QmpClient | undefined> {
  try {
    await client.execute("query-status", undefined, signal);
    return client;
  } catch (error) {
    if (signal.aborted || hasCode(error, "E_QMP_TIMEOUT")) throw error;
  }
  const until = performance.now() + RECONNECT_MS;
  for (;;) {
    try {
      return await QmpClient.connect(client.path, signal, { greetingMs: RECONNECT_MS });
    } catch (error) {
      if (hasCode(error, "E_QMP_CONNECT")) return undefined;
      // a QEMU that is about to end takes the connection and hangs up
      if (!hasCode(error, "E_QMP_GONE") || performance.now() > until) throw error;
    }
    await pause(RECONNECT_STEP_MS, signal);
  }
}
