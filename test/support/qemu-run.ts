import { chooseParent, type KnownGeneration } from "../../src/qemu/bitmaps.ts";
import { tokenOfRun } from "../../src/qemu/names.ts";
import { QemuVm, type QemuSourceOptions, type StartGuard } from "../../src/qemu/point-in-time.ts";

/** What `qemu-run.ts` is told, as JSON in its only argument. */
export interface RunOrder {
  readonly options: Omit<QemuSourceOptions, "warn">;
  readonly repository: string;
  readonly generation: string;
  /** Newest first: the generation, and the disks' sizes. */
  readonly listed: readonly (readonly [string, Readonly<Record<string, number>>])[];
  readonly guarded: boolean;
}

/**
 * A program that backs up a VM, for tests that end it: it opens a point in time, says "opened" on the IPC channel,
 * waits for any word, and closes the point in time as committed.
 */
async function main(order: RunOrder): Promise<void> {
  const never = new AbortController().signal;
  const options: QemuSourceOptions = { ...order.options, warn: (message) => console.error(message) };
  const vm = await QemuVm.connect(options, tokenOfRun(order.generation), never);
  const listed: KnownGeneration[] = order.listed.map(([generation, sizes]) => ({
    generation,
    disks: new Map(Object.entries(sizes).map(([disk, size]) => [disk, { size }])),
  }));
  const { ways } = chooseParent({ disks: vm.disks, nodes: vm.vm.nodes }, order.repository, listed);
  const parentBitmaps = new Map(
    [...ways].flatMap(([disk, { bitmap }]) => (bitmap === undefined ? [] : [[disk, bitmap] as const])),
  );
  const nobody: StartGuard = () =>
    Promise.resolve({
      freeze: () => Promise.resolve(0),
      thaw: () => Promise.resolve({ frozenMs: 0, overrun: false }),
      finish: () => Promise.resolve(),
      died: new Promise<never>(() => undefined),
    });
  const plan = { repository: order.repository, generation: order.generation, parentBitmaps };
  const pit = order.guarded ? await vm.open(plan, never) : await vm.open(plan, never, nobody);
  const told = new Promise((resolve) => process.once("message", resolve));
  process.send!("opened");
  await told;
  await pit.assertAlive(never);
  await pit.close("committed");
  await vm.close();
  process.disconnect();
}

await main(JSON.parse(process.argv[2]!) as RunOrder);
