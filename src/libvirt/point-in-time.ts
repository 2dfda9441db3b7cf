import { resolve } from "node:path";
import { AppError, hasCode, messageOf } from "../errors.ts";
import type { Outcome } from "../qemu/end-run.ts";
import { consistencyOf, freezeGuest, type FreezeWish } from "../qemu/guard/freeze.ts";
import type { Guard, Thawed } from "../qemu/guard/guard.ts";
import { RunNames } from "../qemu/names.ts";
import { refuseIothreads } from "../qemu/requirements.ts";
import { RunFile } from "../qemu/run-file.ts";
import { backupXml, checkpointXml, type AskedDisk } from "./backup-xml.ts";
import { checkpointsOf, deleteCheckpoint, type Checkpoint } from "./checkpoints.ts";
import { DomainHandle, selectDomainDisks, type Domain, type DomainDisk } from "./domain.ts";
import { endDomainRun } from "./end-run.ts";
import { startDomainGuard } from "./guard/guard.ts";
import { backupJob } from "./jobs.ts";
import { generationCheckpoint, runKey } from "./names.ts";
import { canTrack } from "./parent.ts";
import { clearDomain, refuseBusy } from "./recovery.ts";
import { planScratch } from "./scratch.ts";
import { DomainWatch } from "./watch.ts";

export interface DomainOptions extends FreezeWish {
  /** Its name, UUID or number. */
  readonly domain: string;
  /** Libvirt's connection; undefined: its own choice. */
  readonly uri: string | undefined;
  /** A folder that QEMU and libvirt find under the same path, and may write to. */
  readonly scratchDir: string;
  /** Bytes that the run may take there; undefined: as much as it could ever need, if there is so much. */
  readonly scratchSizeMax?: number | undefined;
  /** Names of disks; undefined: all that the guest can write. */
  readonly disks?: readonly string[] | undefined;
}

/** What a run wants of a domain. */
export interface DomainPlan {
  readonly repository: string;
  readonly generation: string;
  /** By disk, the checkpoint to read it by; absent: the whole disk. */
  readonly parents: ReadonlyMap<string, string>;
}

export interface OpenedDomainDisk {
  readonly name: string;
  readonly socket: string;
  readonly exportName: string;
  /** To be read as `qemu:dirty-bitmap:NAME`: what changed since the parent. */
  readonly bitmap: string | undefined;
  /** Records from now on; for the manifest. Undefined: nothing does. */
  readonly checkpoint: string | undefined;
}

export interface DomainPointInTime {
  readonly disks: readonly OpenedDomainDisk[];
  readonly consistency: "filesystem" | "crash";
  /** How long the guest stood frozen, milliseconds; undefined when it did not. */
  readonly frozenMs: number | undefined;
  readonly takeMs: number;
  /** Rejects with E_POINT_IN_TIME_LOST. Never resolves. */
  readonly lost: Promise<never>;
  /** @throws AppError E_POINT_IN_TIME_LOST (source). */
  assertAlive(signal: AbortSignal): Promise<void>;
  /**
   * Ends the backup. `committed`: checkpoints that are stale by it go; `failed`: the new one goes; `unknown`: all stay,
   * for the next run to decide. Called once, never throws, warns.
   */
  close(outcome: Outcome): Promise<void>;
}

/** How long it may take to remove a checkpoint of no use, milliseconds. The guest may stand frozen. */
const DELETE_MS = 2000;

/** A domain of libvirt that runs. */
export class RunningDomain {
  readonly #handle: DomainHandle;
  readonly #options: DomainOptions;
  readonly #names: RunNames;
  readonly #domain: Domain;

  private constructor(handle: DomainHandle, options: DomainOptions, token: string, domain: Domain) {
    this.#handle = handle;
    this.#options = options;
    this.#names = new RunNames(token);
    this.#domain = domain;
  }

  /**
   * Finds it and clears what dead runs left behind.
   *
   * @param token of the run (`tokenOfRun`). @param purpose "look": nothing is changed.
   * @throws AppError as `DomainHandle.find`, `survey`, `selectDomainDisks`, `refuseIothreads`, `clearDomain`; E_FREEZE_AGENT (usage).
   */
  static async connect(
    wish: DomainOptions,
    token: string,
    signal: AbortSignal,
    purpose: "backup" | "look",
  ): Promise<RunningDomain> {
    const options = { ...wish, scratchDir: resolve(wish.scratchDir) };
    const handle = await DomainHandle.find(options.uri, options.domain, signal);
    const domain = await handle.survey(signal);
    const iothreads = selectDomainDisks(domain, options.disks).some(({ iothread }) => iothread);
    if (iothreads) refuseIothreads({ iothreads, version: await handle.qemuVersion(signal) });
    if (options.freeze === "require" && !domain.agentChannel) {
      const message = `Domain ${domain.name} has no channel for a guest agent, through which alone its guest can be frozen`;
      throw new AppError("usage", "E_FREEZE_AGENT", message);
    }
    if (purpose === "backup") {
      const cleared = await clearDomain(handle, { scratchDir: options.scratchDir }, signal);
      for (const run of cleared) options.warn(`Cleared what an earlier backup left behind: ${run}`);
    }
    return new RunningDomain(handle, options, token, domain);
  }

  /** Those to be backed up. */
  get disks(): readonly DomainDisk[] {
    return selectDomainDisks(this.#domain, this.#options.disks);
  }

  /** Ours, of this repository. @throws as `Virsh.run`. */
  async checkpoints(repository: string, signal: AbortSignal): Promise<Checkpoint[]> {
    return await checkpointsOf(this.#handle, repository, "dirty", signal);
  }

  /**
   * Makes the point in time. When any step fails, everything is undone first.
   *
   * @throws AppError E_SCRATCH_FOLDER, E_SCRATCH_SIZE (usage), E_SCRATCH_SPACE (full), E_DOMAIN_BUSY (locked),
   *   E_PARENT_BITMAP, E_DOMAIN_CHANGED, E_FREEZE_OVERRUN (source); as `Guard`, `Virsh.run`; the signal's reason.
   */
  async open(plan: DomainPlan, signal: AbortSignal): Promise<DomainPointInTime> {
    const [handle, names, options] = [this.#handle, this.#names, this.#options];
    const { scratchDir, freezeBudgetMs, warn } = options;
    const { token } = names;
    const asked = this.#ask(plan);
    const socket = names.socket(scratchDir);
    const mark = await RunFile.create(scratchDir, token, runKey(handle.uuid));
    let guard: Guard | undefined;
    let watch: DomainWatch | undefined;
    let ending = false;
    const end = async (outcome: Outcome): Promise<void> => {
      ending = true;
      await watch?.close();
      const others = this.#others();
      await endDomainRun({ domain: handle, token, plan, others, mark, guard, scratchDir, warn }, outcome);
    };
    try {
      const scratch = await planScratch(this.disks, options);
      const run = { freezes: this.#freezes, freezeBudgetMs, token, scratchDir };
      guard = await startDomainGuard(handle, run, signal);
      guard.died.catch((error: unknown) => {
        if (!ending) warn(`Nobody would clean up if this backup died now: ${messageOf(error)}`);
      });
      await refuseBusy(handle, signal);
      const checkpoint = checkpointXml(
        generationCheckpoint(plan.repository, plan.generation),
        "Blockhaul: what changes since the generation in the name",
        asked,
        this.#others(),
      );
      const backup = backupXml(asked, socket, names.temporaryBitmap);
      const texts = asked.some(({ tracked }) => tracked) ? [backup, checkpoint] : [backup];

      const { frozen, thawed, takeMs } = await this.#take(plan, texts, guard, mark, signal);
      const consistency = consistencyOf(frozen, thawed.overrun, options);

      // the guest runs on
      signal.throwIfAborted();
      watch = new DomainWatch(handle, { token, scratchDir, ...scratch });
      await this.#assertBegun(asked, socket, signal);
      return {
        disks: asked.map((disk) => openedDisk(disk, plan, socket, names)),
        consistency,
        frozenMs: frozen ? thawed.frozenMs : undefined,
        takeMs,
        lost: watch.lost,
        assertAlive: (until) => watch!.check(until),
        close: end,
      };
    } catch (error) {
      await end("failed");
      throw error;
    }
  }

  #ask({ parents }: DomainPlan): AskedDisk[] {
    const { scratchDir } = this.#options;
    return this.disks.map((disk, index) => ({
      name: disk.name,
      since: parents.get(disk.name),
      tracked: canTrack(disk),
      exportName: this.#names.export(index),
      scratch: this.#names.scratchFile(scratchDir, index),
    }));
  }

  /** Disks of the domain that are not backed up. */
  #others(): string[] {
    const ours = new Set(this.disks.map(({ name }) => name));
    return this.#domain.disks.flatMap(({ name }) => (ours.has(name) ? [] : name));
  }

  get #freezes(): boolean {
    return this.#options.freeze !== "off" && this.#domain.agentChannel;
  }

  /** The instant. The run's file tells, from before it until after it, what may have come of it. */
  async #take(
    plan: DomainPlan,
    texts: readonly string[],
    guard: Guard,
    mark: RunFile,
    signal: AbortSignal,
  ): Promise<{ frozen: boolean; thawed: Thawed; takeMs: number }> {
    let froze = this.#freezes;
    let beginning = false;
    await mark.setTaking({ froze, beginning: true });
    try {
      const wish: FreezeWish = { ...this.#options, freeze: froze ? this.#options.freeze : "off" };
      const frozen = await freezeGuest(guard, wish, signal);
      const startedAt = performance.now();
      let thawed: Thawed;
      try {
        await this.#begin(texts, plan);
      } catch (error) {
        beginning = hasCode(error, "E_LIBVIRT_SILENT");
        throw error;
      } finally {
        thawed = await guard.thaw();
        froze = false;
      }
      return { frozen, thawed, takeMs: performance.now() - startedAt };
    } catch (error) {
      froze &&= hasCode(error, "E_FROZEN");
      throw error;
    } finally {
      // where the scratch is full already it cannot be written: it says too much then, which does no harm
      await mark.setTaking({ froze, beginning }).catch(() => undefined);
    }
  }

  /** Not to be stopped: libvirt would go on. It gives up by itself when it cannot have the domain. */
  async #begin(texts: readonly string[], { parents }: DomainPlan): Promise<void> {
    const { virsh, uuid, name } = this.#handle;
    try {
      await virsh.runWith("backup-begin", texts, ([backup, checkpoint]) => [
        ...["--domain", uuid, "--backupxml", backup!],
        ...(checkpoint === undefined ? [] : ["--checkpointxml", checkpoint]),
      ]);
    } catch (error) {
      if (!hasCode(error, "E_CHECKPOINT_BROKEN") && !hasCode(error, "E_CHECKPOINT_MISSING")) throw error;
      // whatever it is, the next run is not to stumble over it again
      for (const parent of new Set(parents.values())) {
        await deleteCheckpoint(this.#handle, parent, AbortSignal.timeout(DELETE_MS)).catch(() => undefined);
      }
      const message = `Domain ${name} cannot be read by the checkpoint that it has; the next backup reads all of it: ${error.message}`;
      throw new AppError("source", "E_PARENT_BITMAP", message, { domain: name }, error);
    }
  }

  /**
   * Libvirt did what was asked, and to the disks that were looked at: while a backup runs, none can be taken out or
   * resized.
   */
  async #assertBegun(asked: readonly AskedDisk[], socket: string, signal: AbortSignal): Promise<void> {
    const [job, now] = await Promise.all([backupJob(this.#handle, signal), this.#handle.survey(signal)]);
    for (const { name, since, exportName } of asked) {
      const disk = job?.disks.find((one) => one.name === name);
      const mode = since === undefined ? "full" : "incremental";
      const begun = job?.socket === socket && disk?.mode === mode && disk.since === since;
      if (!begun || disk.exportName !== exportName)
        throw this.#changed(`disk ${name} is not backed up as it should`);
      const before = this.#domain.disks.find((one) => one.name === name)!;
      const after = now.disks.find((one) => one.name === name);
      if (after?.size !== before.size) throw this.#changed(`disk ${name} was resized`);
      if (after.images[0] !== before.images[0]) throw this.#changed(`disk ${name} got another image`);
    }
  }

  #changed(why: string): AppError {
    const { name } = this.#handle;
    const message = `Domain ${name} changed while its backup began: ${why}; run it again`;
    return new AppError("source", "E_DOMAIN_CHANGED", message, { domain: name });
  }
}

function openedDisk(
  { name, since, tracked, exportName }: AskedDisk,
  { repository, generation }: DomainPlan,
  socket: string,
  names: RunNames,
): OpenedDomainDisk {
  return {
    name,
    socket,
    exportName,
    bitmap: since === undefined ? undefined : names.temporaryBitmap,
    checkpoint: tracked ? generationCheckpoint(repository, generation) : undefined,
  };
}
