import { resolve } from "node:path";
import { AppError, messageOf } from "../errors.ts";
import { halfThreads, type KnownGeneration } from "./bitmaps.ts";
import { ClassicFleecing } from "./classic-fleecing.ts";
import { refuseIothreads, requireQemu, selectDisks } from "./requirements.ts";
import { endRun, type Outcome } from "./end-run.ts";
import { FilterFleecing } from "./filter-fleecing.ts";
import { runDiskOf, type Fleecing, type QemuPlan, type RunDisk } from "./fleecing.ts";
import { consistencyOf, freezeGuest, type FreezeWish } from "./guard/freeze.ts";
import { Guard, type GuardOptions, type Thawed } from "./guard/guard.ts";
import { surveyVm, type Vm, type VmDisk } from "./inventory.ts";
import { connectMonitor } from "./monitor.ts";
import { RunNames } from "./names.ts";
import { startNbdServer, exportDisk } from "./nbd-server.ts";
import type { QmpClient } from "./qmp/client.ts";
import { clearLeftovers, mergeHalfThreads } from "./recovery.ts";
import { RunFile } from "./run-file.ts";
import { makeScratch } from "./scratch.ts";
import { Watch } from "./watch.ts";

export interface QemuSourceOptions extends FreezeWish {
  /** Path of the monitor's socket. */
  readonly qmp: string;
  /** Path of the guest agent's socket. */
  readonly agent?: string | undefined;
  readonly fleecing: "auto" | "classic" | "filter";
  /** A folder that QEMU finds under the same path, and may write to. */
  readonly scratchDir: string;
  /** Bytes that the run may take there; undefined: as much as it could ever need, if there is so much. */
  readonly scratchSizeMax?: number | undefined;
  /** Names of disks; undefined: all that the guest can write. */
  readonly disks?: readonly string[] | undefined;
}

export interface OpenedQemuDisk {
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** Where QEMU's NBD server listens. */
  readonly socket: string;
  readonly exportName: string;
  /** To be read as `qemu:dirty-bitmap:NAME`: what changed since the parent. */
  readonly bitmap: string | undefined;
  /** Records from now on; for the manifest. */
  readonly newBitmap: string;
}

export interface QemuPointInTime {
  readonly disks: readonly OpenedQemuDisk[];
  readonly consistency: "filesystem" | "crash";
  /** How long the guest stood frozen; undefined when it did not. */
  readonly frozenMs: number | undefined;
  /** How long the instant took: that is all the guest had to be frozen for. */
  readonly takeMs: number;
  /** @throws AppError E_POINT_IN_TIME_LOST (source), when what was read may be newer than the instant. */
  assertAlive(signal: AbortSignal): Promise<void>;
  /** Rejects with E_POINT_IN_TIME_LOST as soon as QEMU says so. Never resolves. */
  readonly lost: Promise<never>;
  /**
   * Takes everything down. `committed`: the parent's bitmaps and what else is stale go; `failed`: the new ones go;
   * `unknown`: both stay, for the next run to decide. Called once, never throws, warns.
   */
  close(outcome: Outcome): Promise<void>;
}

/** What a run asks of its guard, which is started before anything is done to QEMU. */
export type RunGuard = Pick<Guard, "freeze" | "thaw" | "finish" | "died">;

export type StartGuard = (options: GuardOptions, signal: AbortSignal) => Promise<RunGuard>;

/** A running QEMU that is ours: its monitor serves one client, and that is the lock on the VM. */
export class QemuVm {
  readonly #client: QmpClient;
  readonly #options: QemuSourceOptions;
  readonly #names: RunNames;
  #vm: Vm;

  private constructor(client: QmpClient, options: QemuSourceOptions, token: string, vm: Vm) {
    this.#client = client;
    this.#options = options;
    this.#names = new RunNames(token);
    this.#vm = vm;
  }

  /**
   * Connects and clears what dead runs left behind.
   *
   * @param token of the run (`tokenOfRun`).
   * @param purpose "look": what dead runs left stays, and nothing else is changed.
   * @throws AppError as `connectMonitor`, `clearLeftovers`, `selectDisks` and `refuseIothreads`; E_FLEECING,
   *   E_FREEZE_AGENT, E_QEMU_OLD (usage).
   */
  static async connect(
    source: QemuSourceOptions,
    token: string,
    signal: AbortSignal,
    purpose: "backup" | "look" = "backup",
  ): Promise<QemuVm> {
    const options = { ...source, scratchDir: resolve(source.scratchDir) }; // QEMU works in another folder than we do
    if (options.freeze === "require" && options.agent === undefined) {
      const message =
        "The guest can only be frozen through its agent: name the socket with --guest-agent PATH";
      throw new AppError("usage", "E_FREEZE_AGENT", message);
    }
    const client = await connectMonitor(options.qmp, options.scratchDir, signal);
    try {
      if (purpose === "backup") {
        const cleared = await clearLeftovers(client, { scratchDir: options.scratchDir }, signal);
        for (const run of cleared) options.warn(`Cleared what an earlier backup left behind: ${run}`);
      }
      const vm = await surveyVm(client, signal);
      selectDisks(vm, options.disks);
      refuseIothreads(vm);
      requireQemu(vm, await client.schema(signal), options.fleecing);
      return new QemuVm(client, options, token, vm);
    } catch (error) {
      await client.close();
      throw error;
    }
  }

  /** As of the last look. */
  get vm(): Vm {
    return this.#vm;
  }

  /** Those to be backed up. */
  get disks(): readonly VmDisk[] {
    return selectDisks(this.#vm, this.#options.disks);
  }

  /**
   * Repairs bitmaps that an interrupted run of the "thread" form left behind (`halfThreads`). Before `chooseParent`.
   *
   * @param known newest first.
   * @returns the names of the disks.
   */
  async mergeBack(
    repository: string,
    known: readonly KnownGeneration[],
    signal: AbortSignal,
  ): Promise<string[]> {
    const halves = halfThreads(this.#vm.disks, repository, known);
    if (halves.length === 0) return [];
    await mergeHalfThreads(this.#client, halves, signal);
    this.#vm = await surveyVm(this.#client, signal);
    return halves.map((half) => half.disk);
  }

  /**
   * Makes the point in time. When any step fails, everything is undone first.
   *
   * @throws AppError E_SCRATCH_FOLDER, E_SCRATCH_SIZE, E_PROGRAM_MISSING (usage), E_SCRATCH_SPACE (full),
   *   E_NBD_SERVER_TAKEN (locked), E_PARENT_BITMAP, E_FREEZE_OVERRUN (source); as `Guard`, `QmpClient.execute`; the signal's reason.
   */
  async open(
    plan: QemuPlan,
    signal: AbortSignal,
    startGuard: StartGuard = (guarded, until) => Guard.start(guarded, until),
  ): Promise<QemuPointInTime> {
    const [client, names, options] = [this.#client, this.#names, this.#options];
    const { scratchDir, warn } = options;
    this.#vm = await surveyVm(client, signal);
    const disks = this.disks.map((disk, index) => runDiskOf(plan, disk, index));
    const mark = await RunFile.create(scratchDir, names.token, options.qmp);
    let guard: RunGuard | undefined;
    let watch: Watch | undefined;
    let ending = false;
    const end = (outcome: Outcome): Promise<void> => {
      ending = true;
      watch?.close();
      return endRun({ client, names, disks, plan, mark, guard, scratchDir, warn }, outcome);
    };
    try {
      const agent = options.freeze === "off" ? undefined : options.agent;
      guard = await startGuard({ ...options, agent, token: names.token }, signal);
      guard.died.catch((error: unknown) => {
        if (!ending) warn(`Nobody would clean up if this backup died now: ${messageOf(error)}`);
      });

      // the slow part, which the guest does not notice
      const fleecing = this.#fleecing(disks, mark);
      await fleecing.attach(await makeScratch(names, disks, options, signal), signal);
      const socket = await startNbdServer(client, names, scratchDir, disks.length, signal);
      watch = new Watch(client, names, disks);

      // the instant
      const frozen = await freezeGuest(
        guard,
        { ...options, freeze: agent === undefined ? "off" : options.freeze },
        signal,
      );
      const startedAt = performance.now();
      let takeMs: number;
      let thawed: Thawed;
      try {
        await fleecing.take(signal);
        takeMs = performance.now() - startedAt;
      } finally {
        thawed = await guard.thaw();
      }
      const consistency = consistencyOf(frozen, thawed.overrun, options);

      // the guest runs on
      for (const disk of disks)
        await exportDisk(client, names, disk, await fleecing.view(disk, signal), signal);
      return {
        disks: disks.map((disk) => openedDisk(disk, names, socket)),
        consistency,
        frozenMs: frozen ? thawed.frozenMs : undefined,
        takeMs,
        lost: watch.lost,
        assertAlive: assertAlive(fleecing, watch),
        close: end,
      };
    } catch (error) {
      await end("failed");
      throw error;
    }
  }

  /** What was opened is closed first. */
  async close(): Promise<void> {
    await this.#client.close();
  }

  #fleecing(disks: readonly RunDisk[], mark: RunFile): Fleecing {
    return this.#options.fleecing === "filter"
      ? new FilterFleecing(this.#client, this.#names, disks, mark)
      : new ClassicFleecing(this.#client, this.#names, disks);
  }
}

function openedDisk({ disk, parent, newBitmap }: RunDisk, names: RunNames, socket: string): OpenedQemuDisk {
  const bitmap = parent === undefined ? undefined : names.temporaryBitmap;
  return { name: disk.name, size: disk.size, socket, exportName: disk.name, bitmap, newBitmap };
}

function assertAlive(fleecing: Fleecing, watch: Watch): QemuPointInTime["assertAlive"] {
  return async (signal) => {
    const broken = await fleecing.whatBroke(signal).catch((error: unknown) => {
      signal.throwIfAborted();
      return messageOf(error); // who does not answer does not vouch for anything
    });
    await watch.check(); // it may know why
    if (broken !== undefined) throw watch.lose(broken);
  };
}
