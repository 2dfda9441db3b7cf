import { setTimeout as delay } from "node:timers/promises";
import { expect } from "vitest";
import { KiB, MiB } from "../../src/bytes/size.ts";
import type { ChunkWorkers } from "../../src/chunk/workers.ts";
import { hasCode } from "../../src/errors.ts";
import { guardsAmong } from "./guards.ts";
import { ModelledVm } from "./modelled-vm.ts";
import { QEMU_10 } from "./qemu-vm.ts";
import { seeded } from "./seeded.ts";
import { StoryPlace } from "./story-place.ts";
import { killRun, type VmRun } from "./vm-runs.ts";

const never = new AbortController().signal;
const SIZE_MAX = 12 * MiB;
const NODES = ["drive0", "drive1"] as const;

type Node = (typeof NODES)[number];

/**
 * A VM, two repositories, and what may happen to them, at random. Beside it what every generation has to hold: that
 * is looked at as soon as one is there, whatever became of the run that made it.
 */
export class VmStory {
  /** What has happened, for people. */
  readonly log: string[] = [];
  readonly #vm: ModelledVm;
  readonly #places: readonly StoryPlace[];
  /** Flags for the other way of fleecing, where there is one. */
  readonly #filter: string[];
  readonly #random: (below: number) => number;
  readonly #sizes = new Map<Node, Set<number>>();
  /** Milliseconds: of the last run that nobody disturbed. */
  #lasts = 1000;
  /** A run was killed with its guard, and what it left in QEMU is still there. */
  #littered = false;
  /** So are its files, which no restart takes away. */
  #filesLeft = false;
  #snapshots = 0;

  private constructor(vm: ModelledVm, places: readonly StoryPlace[], qemu: "system" | "10", seed: number) {
    this.#vm = vm;
    this.#places = places;
    this.#filter = qemu === "10" ? ["--fleecing", "filter"] : [];
    this.#random = seeded(seed);
    for (const node of NODES) this.#sizes.set(node, new Set([vm.size(node)]));
  }

  /** It all goes when the test ends. */
  static async begin(seed: number, qemu: "system" | "10", workers: ChunkWorkers): Promise<VmStory> {
    const disks = NODES.map((node, index) => ({ node, size: (4 + index) * MiB }));
    const vm = await ModelledVm.start(disks, qemu === "10" ? QEMU_10 : undefined);
    const places = [await StoryPlace.make(vm, workers), await StoryPlace.make(vm, workers)];
    return new VmStory(vm, places, qemu, seed);
  }

  /** Something happens. */
  async step(): Promise<void> {
    const happenings: readonly (readonly [number, () => Promise<void>])[] = [
      [30, () => this.#write()],
      [14, () => this.#backUp()],
      [4, () => this.#backUp("--full")],
      [4, () => this.#backUp("--disk", `dev-${this.#node()}`)],
      [6, () => this.#backUp(...this.#filter)],
      [8, () => this.#killed(true)],
      [10, () => this.#killed(false)],
      [4, () => this.#interrupted()],
      [6, () => this.#storeFails()],
      [6, () => this.#restart()],
      [4, () => this.#crash()],
      [5, () => this.#resize()],
      [6, () => this.#snapshot()],
      [3, () => this.#internalSnapshot()],
      [3, () => this.#spoilBitmap()],
      [2, () => this.#drop()],
    ];
    let dice = this.#random(happenings.reduce((sum, [weight]) => sum + weight, 0));
    for (const [weight, happen] of happenings) {
      if ((dice -= weight) < 0) return happen();
    }
  }

  /** A last backup into both, and every generation once more. */
  async end(): Promise<void> {
    for (const place of this.#places) {
      await this.#plain(place, []);
      await place.expectAllRight();
    }
  }

  async #write(): Promise<void> {
    for (let times = 1 + this.#random(4); times > 0; times--) {
      const node = this.#node();
      const size = this.#vm.size(node);
      const grain = [512, 4 * KiB, 64 * KiB][this.#random(3)]!;
      const offset = this.#random(size / grain) * grain;
      const length = Math.min((1 + this.#random(8)) * grain, size - offset);
      const byte = this.#random(4) === 0 ? 0 : 1 + this.#random(255);
      await this.#vm.write(node, offset, length, byte);
    }
  }

  async #backUp(...flags: string[]): Promise<void> {
    await this.#plain(this.#place(), flags);
  }

  /** A run that must succeed. */
  async #plain(place: StoryPlace, flags: readonly string[]): Promise<void> {
    const startedMs = performance.now();
    const sound = [...place.sound];
    const run = await this.#run(place, flags, {});
    expect(run.code, run.stderr).toBe(0);
    this.#lasts = performance.now() - startedMs;
    const { disks } = run.generation!;
    if (!flags.includes("--full")) {
      for (const { name, kind, reason } of disks.filter((disk) => sound.includes(disk.name)))
        expect({ name, kind, reason }).toMatchObject({ name, kind: "incremental" });
    }
    await this.#expectTidy();
    await place.expectOneBitmap(disks.map(({ name }) => name));
  }

  async #killed(guarded: boolean): Promise<void> {
    let guards: number[] = [];
    await this.#run(this.#place(), this.#flags(), {
      started: (child) => {
        void delay(this.#random(this.#lasts)).then(async () => {
          if (child.exitCode === null) guards = await killRun(child, guarded);
        });
      },
    });
    this.#note(guarded ? "killed" : "killed with its guard");
    if (guarded) await expect.poll(() => guardsAmong(guards), { timeout: 30_000 }).toEqual([]);
    this.#littered = true;
    this.#filesLeft = true;
  }

  async #interrupted(): Promise<void> {
    const place = this.#place();
    const run = await this.#run(place, this.#flags(), {
      started: (child) => void delay(this.#random(this.#lasts)).then(() => child.kill("SIGINT")),
    });
    if (run.signal === "SIGINT") return; // before the program knew what to do then
    expect([0, 130], run.stderr).toContain(run.code);
    await this.#expectTidyAgain();
  }

  /** No file of the run can grow beyond a limit: of the repository, the cache, or the scratch. */
  async #storeFails(): Promise<void> {
    const place = this.#place();
    const limit = [200, 1500, 20 * KiB, 200 * KiB][this.#random(4)]!;
    const run = await this.#run(place, this.#flags(), { under: ["prlimit", `--fsize=${limit}`] });
    this.#note(`files of at most ${limit} bytes: exit ${run.code}`);
    expect([0, 2, 14, 15], run.stderr).toContain(run.code);
    await this.#expectTidyAgain();
  }

  async #restart(): Promise<void> {
    this.#note("restart");
    await this.#vm.vm.quit();
    await this.#vm.vm.boot();
    this.#littered = false;
  }

  async #crash(): Promise<void> {
    this.#note("QEMU killed");
    await this.#vm.vm.process.stop();
    await this.#vm.reread();
    await this.#vm.vm.boot();
    for (const { sound } of this.#places) sound.clear();
    this.#littered = false;
  }

  /** To a size that the disk never had: cut off and grown back, nobody could tell (README). */
  async #resize(): Promise<void> {
    if (this.#littered) return;
    const node = this.#node();
    const size = 512 * (1 + this.#random(SIZE_MAX / 512));
    if (this.#sizes.get(node)!.has(size)) return;
    if (!(await this.#allowed(`resize ${node} to ${size}`, () => this.#vm.resize(node, size)))) return;
    this.#sizes.get(node)!.add(size);
    this.#spoil(node);
  }

  async #snapshot(): Promise<void> {
    if (this.#littered) return;
    const node = this.#node();
    const back = this.#vm.hasSnapshot(node);
    if (back && this.#vm.isShorterThanBase(node)) return;
    const change = (): Promise<void> => (back ? this.#vm.commitSnapshot(node) : this.#vm.snapshot(node));
    if (await this.#allowed(back ? `commit of ${node}` : `snapshot of ${node}`, change)) this.#spoil(node);
  }

  async #internalSnapshot(): Promise<void> {
    if (this.#littered) return;
    const device = await this.#vm.topOf(this.#node());
    const snapshot = { device, name: `s${++this.#snapshots}` };
    const make = this.#command("blockdev-snapshot-internal-sync", snapshot);
    await this.#allowed(`internal snapshot of ${device}`, make);
  }

  /** Somebody removes or disables a bitmap of ours. */
  async #spoilBitmap(): Promise<void> {
    if (this.#littered) return;
    const node = this.#node();
    const top = await this.#vm.topOf(node);
    const names = (await this.#vm.vm.survey()).disks.find((disk) => disk.node === top)!.bitmaps;
    const name = names[this.#random(names.length)]?.name;
    if (name === undefined) return;
    const command = this.#random(2) === 0 ? "block-dirty-bitmap-remove" : "block-dirty-bitmap-disable";
    if (await this.#allowed(`${command} ${name}`, this.#command(command, { node: top, name })))
      this.#spoil(node);
  }

  /** Somebody deletes the newest generation. */
  async #drop(): Promise<void> {
    const place = this.#place();
    const { newest } = place;
    if (newest === undefined) return;
    this.#note(`${this.#nameOf(place)}: ${newest} is deleted`);
    await place.delete(newest);
  }

  /** Runs a backup, and looks at what is in the repository then. */
  async #run(
    place: StoryPlace,
    flags: readonly string[],
    options: Parameters<ModelledVm["backUp"]>[2],
  ): Promise<VmRun> {
    this.#note(`${this.#nameOf(place)}: backup ${flags.join(" ")}`);
    if (this.#random(2) === 0) this.#vm.atInstant = (): Promise<void> => this.#write();
    const run = await this.#vm.backUp(place.repository, flags, options);
    this.#vm.atInstant = (): Promise<void> => Promise.resolve();
    const fresh = await place.lookAfter(run);
    this.#note(`  exit ${run.code ?? run.signal}, ${run.generation?.kind ?? ""} ${fresh ?? "nothing"}`);
    return run;
  }

  /** Nothing of a run is left. */
  async #expectTidy(): Promise<void> {
    expect(await this.#vm.leftovers()).toEqual([]);
    this.#littered = false;
    this.#filesLeft = false;
  }

  /** As `#expectTidy`, after a run that may have ended before it came to the VM. */
  async #expectTidyAgain(): Promise<void> {
    if (!this.#littered && !this.#filesLeft) await this.#expectTidy();
  }

  #spoil(node: Node): void {
    for (const { sound } of this.#places) sound.delete(`dev-${node}`);
  }

  #command(command: string, args: object): () => Promise<void> {
    return async () => {
      await this.#vm.vm.hand.execute(command, args, never);
    };
  }

  /** @returns false when QEMU refuses. */
  async #allowed(what: string, work: () => Promise<void>): Promise<boolean> {
    try {
      await work();
      this.#note(what);
      return true;
    } catch (error) {
      if (!hasCode(error, "E_QMP_COMMAND")) throw error;
      this.#note(`${what}: ${error.message}`);
      return false;
    }
  }

  #flags(): string[] {
    return [[], [], ["--full"], this.#filter][this.#random(4)]!;
  }

  #node(): Node {
    return NODES[this.#random(NODES.length)]!;
  }

  #place(): StoryPlace {
    return this.#places[this.#random(3) === 0 ? 1 : 0]!;
  }

  #nameOf(place: StoryPlace): string {
    return place === this.#places[0] ? "A" : "B";
  }

  #note(what: string): void {
    this.log.push(what);
  }
}
