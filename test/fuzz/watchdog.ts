import { writeSync } from "node:fs";
import { Worker, isMainThread, workerData } from "node:worker_threads";

/** A decoder that works longer on one input hangs, milliseconds of CPU: on a busy machine they may take minutes. */
const HANG_CPU_MS = 10_000;
/** One that waits longer, milliseconds. */
const HANG_MS = 900_000;
const LOOK_MS = 500;

/** What runs, as the other thread sees it. */
interface Shared {
  /** Number of the target, of the case, and of the changes so far. */
  readonly now: Int32Array;
  readonly names: readonly string[];
}

/** Ends the process, with the name of the case on stderr, when one of them goes on for too long. */
export class Watchdog {
  readonly #now = new Int32Array(new SharedArrayBuffer(12));
  readonly #worker: Worker;

  constructor(names: readonly string[]) {
    const shared: Shared = { now: this.#now, names };
    this.#worker = new Worker(import.meta.filename, { workerData: shared });
    this.#worker.unref();
  }

  began(target: number, number: number): void {
    this.#now[0] = target;
    this.#now[1] = number;
    Atomics.add(this.#now, 2, 1);
  }

  async stop(): Promise<void> {
    await this.#worker.terminate();
  }
}

function watch({ now, names }: Shared): void {
  let last = -1;
  let since = performance.now();
  let cpu = process.cpuUsage();
  setInterval(() => {
    const changes = Atomics.load(now, 2);
    if (changes !== last) {
      last = changes;
      since = performance.now();
      cpu = process.cpuUsage();
      return;
    }
    const { user, system } = process.cpuUsage(cpu);
    if ((user + system) / 1000 > HANG_CPU_MS || performance.now() - since > HANG_MS) {
      writeSync(2, `HANG: target "${names[now[0]!]}", case ${now[1]}\n`);
      process.kill(process.pid, "SIGKILL");
    }
  }, LOOK_MS);
}

if (!isMainThread) watch(workerData as Shared);
