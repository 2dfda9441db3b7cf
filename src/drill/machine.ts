import { once } from "node:events";
import { spawn, type ChildProcess } from "node:child_process";
import { AppError, systemCode } from "../errors.ts";
import { SerialConsole } from "./console.ts";
import { machineArguments, type MachinePlace, type MachineWish } from "./machine-arguments.ts";

/** Characters kept of what QEMU itself says. */
const WORDS_MAX = 4096;

/** A QEMU that runs for a drill. */
export class Machine {
  readonly console: SerialConsole;
  /** Never resolves. @throws AppError E_DRILL_ENDED (source): the guest ended; E_DRILL_QEMU (source): QEMU did. */
  readonly over: Promise<never>;
  readonly #child: ChildProcess;
  readonly #closed: Promise<unknown>;

  private constructor(child: ChildProcess, console: SerialConsole, over: Promise<never>) {
    this.#child = child;
    this.#closed = once(child, "close");
    this.console = console;
    this.over = over;
  }

  /** @throws AppError E_DRILL_NO_QEMU (usage): there is no such program, or it may not be run. */
  static async start(
    wish: MachineWish,
    place: MachinePlace,
    watch: (console: SerialConsole) => void,
  ): Promise<Machine> {
    const child = spawn(wish.qemu, machineArguments(wish, place), { stdio: ["ignore", "pipe", "pipe"] });
    const console = new SerialConsole();
    watch(console);
    let words = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => console.take(text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => (words = (words + text).slice(-WORDS_MAX)));
    const over = new Promise<never>((_, reject) => {
      child.once("close", (code, end) => reject(ending(code, end, words)));
    });
    over.catch(() => undefined); // whoever waits hears it
    try {
      await once(child, "spawn");
    } catch (error) {
      throw notStarted(wish.qemu, error);
    }
    return new Machine(child, console, over);
  }

  /** At once: nothing of the guest is to stay. Resolves when it is gone. Safe to call twice. */
  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#closed;
  }
}

function ending(code: number | null, end: NodeJS.Signals | null, words: string): AppError {
  if (code === 0) {
    const message = "The guest powered off or restarted before it had come up";
    return new AppError("source", "E_DRILL_ENDED", message);
  }
  const said = words.trim().split("\n").at(-1) ?? "";
  return new AppError("source", "E_DRILL_QEMU", `QEMU ended (${end ?? code}): ${said}`, { said });
}

function notStarted(qemu: string, cause: unknown): AppError {
  const code = systemCode(cause);
  const why =
    code === "ENOENT"
      ? "is not there; on Debian: apt install qemu-system-x86, or name another with --qemu"
      : `cannot be run: ${code ?? "unknown"}`;
  return new AppError("usage", "E_DRILL_NO_QEMU", `${qemu} ${why}`, { program: qemu }, cause);
}
