import type { ChildProcess } from "node:child_process";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { surveyVm, type Vm } from "../../../src/qemu/inventory.ts";
import { QmpClient } from "../../../src/qemu/qmp/client.ts";
import { guardsAmong } from "../guards.ts";
import { compareFiles } from "../images.ts";
import { QmpProxy } from "../qmp-proxy.ts";
import { programFor, type TestRepository } from "../repositories.ts";
import { tracesIn } from "../traces.ts";
import {
  generationBegun,
  generationOf,
  killRun,
  runVmBackup,
  type VmGenerationJson,
  type VmRun,
} from "../vm-runs.ts";
import { AgentProxy } from "./agent-proxy.ts";
import { frozenCopy, makeDisk } from "./disk.ts";
import { startGuest, type Guest, type GuestOptions, type QemuExit } from "./guest.ts";
import { Steps, type Step } from "./steps.ts";

const never = new AbortController().signal;

/** How a run is ended by SIGKILL. */
export interface Kill {
  /** At a step, or when the promise resolves. */
  readonly at: Step | Promise<unknown>;
  /** Its guard lives on. */
  readonly guarded: boolean;
}

export interface BackedUpGuestOptions extends Pick<GuestOptions, "qemu" | "writer" | "iothread" | "args"> {
  readonly disks?: 1 | 2;
  /** Bytes. */
  readonly diskSize?: number;
}

/**
 * A guest and a repository; between the program and QEMU a proxy for the monitor and one for the agent, which copy
 * the disks at each instant and stop a run where a test wants it.
 */
export class BackedUpGuest {
  /** Of its own: images, scratch, repository, copies. */
  readonly folder: string;
  readonly scratch: string;
  readonly repository: TestRepository;
  /** By generation, whether it came to be or not: what each disk held at its instant. */
  readonly truths = new Map<string, readonly string[]>();
  /** Flags of every run. */
  flags: readonly string[] = [];
  /**
   * How the disks are held still while they are copied at the instant: by the run itself, which froze the guest; by
   * stopping the VM; or not at all, and nothing is copied.
   */
  truth: "frozen" | "stopped" | "none" = "frozen";
  guest!: Guest;
  /** The test's own monitor. */
  hand!: QmpClient;
  monitor!: QmpProxy;
  agent!: AgentProxy;
  readonly #options: BackedUpGuestOptions;
  #images: readonly string[] = [];
  /** Of the last run that was killed: pids. */
  #guards: readonly number[] = [];
  #failure: Error | undefined;
  #ended: QemuExit | undefined;

  private constructor(folder: string, options: BackedUpGuestOptions) {
    this.folder = folder;
    this.#options = options;
    this.scratch = join(folder, "scratch");
    this.repository = programFor(join(folder, "repository"), { BLOCKHAUL_CACHE_DIR: join(folder, "cache") });
  }

  /** The caller closes it. */
  static async start(options: BackedUpGuestOptions = {}): Promise<BackedUpGuest> {
    const tested = new BackedUpGuest(await mkdtemp(join(tmpdir(), "vm-")), options);
    try {
      await mkdir(tested.scratch);
      await tested.repository.run("init");
      const size = options.diskSize ?? 64 * 1024 * 1024;
      const paths = ["disk0.qcow2", "disk1.qcow2"].slice(0, options.disks ?? 2);
      tested.#images = await Promise.all(paths.map((name) => makeDisk(join(tested.folder, name), size)));
      await tested.boot();
      return tested;
    } catch (error) {
      await tested.close();
      throw error;
    }
  }

  get disks(): readonly string[] {
    return this.#images;
  }

  /** Starts the guest, again if need be, on the same images. */
  async boot(more: Pick<GuestOptions, "writer" | "args"> = {}): Promise<void> {
    await this.#shut();
    const { qemu, iothread, writer, args = [] } = { ...this.#options, ...more };
    const hand = join(this.folder, "hand.sock");
    this.guest = await startGuest({
      images: this.#images,
      args: [...args, "-qmp", `unix:${hand},server=on,wait=off`],
      ...(qemu !== undefined && { qemu }),
      ...(iothread !== undefined && { iothread }),
      ...(writer !== undefined && { writer }),
    });
    const { guest } = this;
    this.hand = await QmpClient.connect(hand, never);
    const monitor = (this.monitor = await QmpProxy.open(guest.qmp, join(this.folder, "qmp.sock")));
    const agent = (this.agent = await AgentProxy.open(guest.agent, join(this.folder, "agent.sock")));
    this.#ended = undefined;
    void guest.exited.then((exit) => {
      this.#ended = exit;
      monitor.vanish();
      agent.vanish();
    });
  }

  /** Runs a backup of the VM as "vm". Its copies of the disks are in `truths`. @param flags after those of every run. */
  async backUp(...flags: string[]): Promise<VmRun> {
    return this.#run(new Steps(), flags);
  }

  /** As `backUp`; the run waits at the step until `act` is done. What that throws is thrown in the end. */
  async backUpWhile(step: Step, act: () => Promise<unknown>, ...flags: string[]): Promise<VmRun> {
    const steps = new Steps();
    steps.at(step, () => this.#noting(act));
    return this.#run(steps, flags);
  }

  /** As `backUp`; the program gets SIGKILL. */
  async backUpUntil({ at, guarded }: Kill, ...flags: string[]): Promise<VmRun> {
    const steps = new Steps();
    let kill = (): Promise<void> => Promise.resolve();
    if ("command" in at) {
      steps.at(at, async () => {
        await kill();
        return "dead";
      });
    }
    return this.#run(steps, flags, (child) => {
      kill = async () => {
        this.#guards = await killRun(child, guarded);
      };
      if ("then" in at) void at.then(() => kill());
    });
  }

  /** As `backUp`. @throws Error unless it exits with 0. */
  async generation(...flags: string[]): Promise<VmGenerationJson> {
    return generationOf(await this.backUp(...flags));
  }

  /** Restores all disks. @returns their files, and what differs from the copies of the generation's instant. */
  async restore({ generation, disks }: VmGenerationJson): Promise<{ files: string[]; differ: string[] }> {
    const folder = await mkdtemp(join(this.folder, "restored-"));
    const truth = this.truths.get(generation);
    const files: string[] = [];
    const differ: string[] = [];
    for (const { name } of disks) {
      const file = join(folder, `${name}.raw`);
      await this.repository.json("restore", generation, "--disk", name, "--to", file);
      files.push(file);
      const copy = truth?.[Number(name.replace("vd", ""))];
      const differs = copy === undefined ? `${name} was not copied` : await compareFiles(file, copy);
      if (differs !== undefined) differ.push(differs);
    }
    return { files, differ };
  }

  async survey(): Promise<Vm> {
    return await surveyVm(this.hand, never);
  }

  /** By disk: the bitmaps on its node. */
  async bitmaps(): Promise<Record<string, readonly string[]>> {
    const { disks } = await this.survey();
    return Object.fromEntries(disks.map((disk) => [disk.name, disk.bitmaps.map(({ name }) => name)]));
  }

  /** As `tracesIn`. */
  leftovers(): Promise<string[]> {
    return tracesIn(this.hand, this.scratch);
  }

  /** Pid of the guard of the last run that was killed, while it is there. */
  guards(): Promise<number[]> {
    return guardsAmong(this.#guards);
  }

  /** Resolves when the guest's writer has made two more rounds: one may have been under way. */
  async writerGoesOn(limitMs = 20_000): Promise<void> {
    const { console } = this.guest;
    const last = [...console.log.matchAll(/^W (\d+)\r?$/gm)].at(-1)?.[1] ?? "0";
    await console.waitFor(new RegExp(`^W ${Number(last) + 2}\\r?$`, "m"), limitMs);
  }

  async close(): Promise<void> {
    await this.#shut();
    await rm(this.folder, { recursive: true, force: true });
  }

  async #shut(): Promise<void> {
    await (this.hand as QmpClient | undefined)?.close();
    await (this.monitor as QmpProxy | undefined)?.close();
    (this.agent as AgentProxy | undefined)?.close();
    await (this.guest as Guest | undefined)?.close();
  }

  async #run(
    steps: Steps,
    flags: readonly string[],
    started?: (child: ChildProcess) => void,
  ): Promise<VmRun> {
    this.#watch(steps);
    const { monitor, agent, scratch, repository } = this;
    const where = [`qmp:${monitor.path}`, "--name", "vm", "--guest-agent", agent.path, "--scratch", scratch];
    const args = [...where, ...this.flags, ...flags];
    const run = await runVmBackup(repository, args, started === undefined ? {} : { started });
    if (this.#failure !== undefined) throw this.#failure;
    const ended = this.#ended === undefined ? "" : `QEMU has ended: ${JSON.stringify(this.#ended)}`;
    return { ...run, stderr: run.stderr + ended };
  }

  #watch(steps: Steps): void {
    this.#failure = undefined;
    this.monitor.reset();
    this.agent.reset();
    this.monitor.decide = async (command) => {
      if (await steps.passed("monitor", command.execute, "before")) return "refuse";
      if (this.truth === "stopped" && generationBegun(command) !== undefined)
        await this.#noting(() => this.hand.execute("stop", undefined, never));
      return "pass";
    };
    this.monitor.answered = async (command) => {
      const generation = generationBegun(command);
      if (generation !== undefined) await this.#noting(() => this.#copy(generation));
      await steps.passed("monitor", command.execute, "after");
    };
    this.agent.seen = (command) => steps.passed("agent", command, "before");
    this.agent.answered = (command) => steps.passed("agent", command, "after");
  }

  async #copy(generation: string): Promise<void> {
    if (this.truth === "none") return;
    const copies: string[] = [];
    for (const number of this.#images.keys())
      copies.push(await frozenCopy({ disks: this.#images, folder: this.folder }, number));
    this.truths.set(generation, copies);
    if (this.truth === "stopped") await this.hand.execute("cont", undefined, never);
  }

  /** A proxy has nobody to tell: the run's end does. */
  async #noting(work: () => Promise<unknown>): Promise<void> {
    try {
      await work();
    } catch (error) {
      this.#failure ??= error as Error;
    }
  }
}
