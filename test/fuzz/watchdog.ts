import { writeSync } from "node:fs";
import { Session } from "node:inspector";
import { Worker, isMainThread, workerData } from "node:worker_threads";

/** A decoder that works longer on one input hangs, milliseconds of CPU: on a busy machine they may take minutes. */
const HANG_CPU_MS = 10_000;
/** One that waits longer, milliseconds. */
const HANG_MS = 900_000;
const LOOK_MS = 500;
/** The stack of what hangs is waited for so long, milliseconds. */
const STACK_MS = 10_000;

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
  const timer = setInterval(() => {
    const changes = Atomics.load(now, 2);
    if (changes !== last) {
      last = changes;
      since = performance.now();
      cpu = process.cpuUsage();
      return;
    }
    const { user, system } = process.cpuUsage(cpu);
    if ((user + system) / 1000 < HANG_CPU_MS && performance.now() - since < HANG_MS) return;
    clearInterval(timer);
    writeSync(2, `HANG: target "${names[now[0]!]}", case ${now[1]}\n`);
    endWithStack();
  }, LOOK_MS);
}

/** Shows where the main thread is, if it runs JavaScript, and ends the process. */
function endWithStack(): void {
  const end = (): void => void process.kill(process.pid, "SIGKILL");
  setTimeout(end, STACK_MS);
  const session = new Session();
  session.connectToMainThread();
  session.on("Debugger.paused", ({ params }) => {
    for (const { functionName, url, location } of params.callFrames) {
      writeSync(2, `    ${functionName} ${url}:${location.lineNumber + 1}\n`);
    }
    end();
  });
  session.post("Debugger.enable", () => session.post("Debugger.pause"));
}

if (!isMainThread) watch(workerData as Shared);
