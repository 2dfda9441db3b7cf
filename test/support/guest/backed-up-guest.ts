import { mkdir, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { surveyVm, type Vm } from "../../../src/qemu/inventory.ts";
import { parseGenerationBitmap } from "../../../src/qemu/names.ts";
import { QmpClient } from "../../../src/qemu/qmp/client.ts";
import { runCli, type CliResult } from "../cli.ts";
import type { GenerationJson } from "../exported-images.ts";
import { compareFiles } from "../images.ts";
import { QmpProxy, type ProxiedCommand } from "../qmp-proxy.ts";
import { programFor, type TestRepository } from "../repositories.ts";
import { AgentProxy } from "./agent-proxy.ts";
import { frozenCopy, makeDisk } from "./disk.ts";
import { startGuest, type Guest, type GuestOptions } from "./guest.ts";

const never = new AbortController().signal;

/** A step of a run, by the command that it is known by. */
export interface Step {
  readonly via: "monitor" | "agent";
  readonly command: string;
  /** Counted from this command of the same side on; from the start unless told. */
  readonly since?: string;
  /** So many of this command pass first; 0 unless told. */
  readonly skip?: number;
  /** `before`: it never reaches QEMU or the guest. `after`: it was done and answered, and the run does not know. */
  readonly when: "before" | "after";
}

/** How a run is ended by SIGKILL. */
export interface Kill {
  /** At a step, or when the promise resolves. */
  readonly at: Step | Promise<unknown>;
  /** Its guard lives on. */
  readonly guarded: boolean;
}

export interface VmGenerationJson extends GenerationJson {
  readonly consistency: "filesystem" | "crash" | "unknown";
  readonly disks: readonly {
    readonly name: string;
    readonly size: number;
    readonly layers: number;
    readonly kind: "full" | "incremental" | "rescan";
    readonly reason: string;
  }[];
  readonly guest: { readonly frozenMs?: number; readonly takeMs: number };
}

/** What one run of the program did. */
export interface VmRun extends CliResult {
  /** When it exited with 0. */
  readonly generation: VmGenerationJson | undefined;
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
  /** Of runs that were killed: pids. */
  readonly #guards = new Set<number>();
  #step:
    { readonly step: Step; waiting: boolean; left: number; readonly act: () => Promise<void> } | undefined;
  #failure: Error | undefined;

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
    this.hand = await QmpClient.connect(hand, never);
    this.monitor = await QmpProxy.open(this.guest.qmp);
    this.agent = await AgentProxy.open(this.guest.agent);
  }

  /** Runs a backup of the VM as "vm". Its copies of the disks are in `truths`. @param flags after those of every run. */
  async backUp(...flags: string[]): Promise<VmRun> {
    return this.backUpUntil(undefined, flags);
  }

  async backUpUntil(end: Kill | undefined, flags: readonly string[] = []): Promise<VmRun> {
    this.#watchRun();
    let kill = (): Promise<void> => Promise.resolve();
    if (end !== undefined && "command" in end.at) {
      const { at } = end;
      this.#step = { step: at, waiting: at.since !== undefined, left: at.skip ?? 0, act: () => kill() };
    }
    const { monitor, agent, scratch, repository } = this;
    const where = [`qmp:${monitor.path}`, "--name", "vm", "--guest-agent", agent.path, "--scratch", scratch];
    const result = await runCli(["backup", ...where, ...this.flags, ...flags, "--json"], {
      env: repository.env,
      started: (child) => {
        const ended = new Promise((done) => child.once("exit", done));
        kill = async () => {
          for (const pid of await guardsOf(child.pid!)) {
            if (end?.guarded === false) process.kill(pid, "SIGKILL");
            this.#guards.add(pid);
          }
          child.kill("SIGKILL");
          await ended;
        };
        if (end !== undefined && "then" in end.at) void end.at.then(() => kill());
      },
    });
    if (this.#failure !== undefined) throw this.#failure;
    const generation = result.code === 0 ? (JSON.parse(result.stdout) as VmGenerationJson) : undefined;
    return { ...result, generation };
  }

  /** As `backUp`. @throws Error unless it exits with 0. */
  async generation(...flags: string[]): Promise<VmGenerationJson> {
    const { code, stderr, generation } = await this.backUp(...flags);
    if (generation === undefined) throw new Error(`backup exited with ${code}: ${stderr}`);
    return generation;
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

  /** What a run could leave behind and has; generations' bitmaps left out. No run may be under way. */
  async leftovers(): Promise<string[]> {
    const { status, disks, jobs, exports, nodes } = await this.survey();
    const server = await this.hand.execute("nbd-server-stop", undefined, never).then(
      () => ["an NBD server"],
      () => [],
    );
    return [
      ...(status === "running" ? [] : [`the VM is ${status}`]),
      ...jobs.map(({ id }) => `job ${id}`),
      ...exports.map(({ id }) => `export ${id}`),
      ...disks.filter(({ node }) => !node.startsWith("drive")).map(({ node }) => `filter ${node}`),
      ...nodes.filter(({ name }) => name.startsWith("bk-")).map(({ name }) => `node ${name}`),
      ...nodes
        .flatMap(({ bitmaps }) => bitmaps)
        .filter(({ name }) => name.startsWith("bk-") && parseGenerationBitmap(name) === undefined)
        .map(({ name }) => `bitmap ${name}`),
      ...server,
      ...(await readdir(this.scratch)).map((name) => `file ${name}`),
    ];
  }

  /** Pids of guards that outlived their runs and are still there. */
  async guards(): Promise<number[]> {
    const there: number[] = [];
    for (const pid of this.#guards) if ((await commandLineOf(pid)) !== "") there.push(pid);
    return there;
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
    await (this.agent as AgentProxy | undefined)?.close();
    await (this.guest as Guest | undefined)?.close();
  }

  #watchRun(): void {
    this.#failure = undefined;
    this.#step = undefined;
    this.monitor.reset();
    this.agent.reset();
    this.monitor.decide = async (command) => {
      if (this.truth === "stopped" && generationOf(command) !== undefined)
        await this.#noting(() => this.hand.execute("stop", undefined, never));
      return (await this.#passed("monitor", command.execute, "before")) ? "refuse" : "pass";
    };
    this.monitor.answered = async (command) => {
      const generation = generationOf(command);
      if (generation !== undefined) await this.#noting(() => this.#copy(generation));
      await this.#passed("monitor", command.execute, "after");
    };
    this.agent.seen = (command) => this.#passed("agent", command, "before");
    this.agent.answered = (command) => this.#passed("agent", command, "after");
  }

  async #copy(generation: string): Promise<void> {
    if (this.truth === "none") return;
    const copies: string[] = [];
    for (const number of this.#images.keys())
      copies.push(await frozenCopy({ disks: this.#images, folder: this.folder }, number));
    this.truths.set(generation, copies);
    if (this.truth === "stopped") await this.hand.execute("cont", undefined, never);
  }

  /** @returns whether the run was ended at this step. */
  async #passed(via: Step["via"], command: string, when: Step["when"]): Promise<boolean> {
    const wanted = this.#step;
    if (wanted === undefined) return false;
    const { step, act } = wanted;
    if (step.via !== via) return false;
    if (command === step.since) wanted.waiting = false;
    if (wanted.waiting || step.command !== command || step.when !== when) return false;
    if (wanted.left-- > 0) return false;
    this.#step = undefined;
    await act();
    return true;
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

/** Of a transaction that begins a generation's bitmaps: that is the instant. */
function generationOf({ execute, arguments: given }: ProxiedCommand): string | undefined {
  if (execute !== "transaction") return undefined;
  const actions = given!["actions"] as { type: string; data: { name?: string } }[];
  const names = actions.filter(({ type }) => type === "block-dirty-bitmap-add").map(({ data }) => data.name!);
  return names.map((name) => parseGenerationBitmap(name)?.generation).find((id) => id !== undefined);
}

/** Pids of a run's guard, of which there is one or none. */
async function guardsOf(pid: number): Promise<number[]> {
  const children = await readFile(`/proc/${pid}/task/${pid}/children`, "utf8").catch(() => "");
  const pids = children.split(" ").filter(Boolean).map(Number);
  const lines = await Promise.all(pids.map((child) => commandLineOf(child)));
  return pids.filter((_, index) => lines[index]!.includes("/guard/process"));
}

/** Empty when there is no such process. */
async function commandLineOf(pid: number): Promise<string> {
  return await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
}
