import { AppError } from "../errors.ts";
import type { Checkpoint } from "../libvirt/checkpoints.ts";
import { chooseCheckpoint } from "../libvirt/parent.ts";
import { RunningDomain, type DomainOptions, type DomainPointInTime } from "../libvirt/point-in-time.ts";
import { unixAddress } from "../nbd/uri.ts";
import { tokenOfRun } from "../qemu/names.ts";
import { closeExports, openExports } from "./nbd-exports.ts";
import type { DiskWay, Plan } from "./plan.ts";
import type { PointInTime } from "./point-in-time.ts";
import { knownGeneration, listedAmong, planByChoice, UNLISTED } from "./bitmap-plan.ts";
import type { BackupSource, DiskOutlook, EarlierGenerations } from "./source.ts";

export interface DomainWish extends DomainOptions {
  /** The source's name in the repository. */
  readonly source: string;
  /** The repository's id: checkpoints bear it, so that several repositories can back up one domain. */
  readonly repository: string;
  /** Read everything and stand on nothing. */
  readonly full: boolean;
  /** NBD connections a disk; undefined: the client's default. */
  readonly connections: number | undefined;
}

/** A domain of libvirt that runs: libvirt makes the point in time, and keeps the checkpoints. */
export class DomainSource implements BackupSource {
  readonly #domain: RunningDomain;
  readonly #wish: DomainWish;
  #checkpoints: readonly Checkpoint[] = [];

  private constructor(domain: RunningDomain, wish: DomainWish) {
    this.#domain = domain;
    this.#wish = wish;
  }

  /** @param run its id. @param purpose "look": nothing is changed in the domain. @throws as `RunningDomain.connect`. */
  static async connect(
    wish: DomainWish,
    run: string,
    purpose: "backup" | "look",
    signal: AbortSignal,
  ): Promise<DomainSource> {
    return new DomainSource(await RunningDomain.connect(wish, tokenOfRun(run), signal, purpose), wish);
  }

  async plan(earlier: EarlierGenerations, signal: AbortSignal): Promise<Plan> {
    const { repository, warn } = this.#wish;
    this.#checkpoints = await this.#domain.checkpoints(repository, signal);
    const generations = this.#checkpoints.map(({ generation }) => generation);
    const manifests = await listedAmong(earlier, generations);
    for (const generation of generations) {
      if (manifests.some((one) => one.generation === generation)) continue;
      warn(`Libvirt has a checkpoint of generation ${generation}, ${UNLISTED}`);
    }
    const { disks } = this.#domain;
    const choice = chooseCheckpoint(disks, this.#checkpoints, manifests.map(knownGeneration));
    return planByChoice(this.#wish, choice, manifests);
  }

  async open(plan: Plan, generation: string, signal: AbortSignal): Promise<PointInTime> {
    const { repository, connections } = this.#wish;
    const parents = new Map<string, string>();
    for (const [disk, { bitmap }] of plan.ways) if (bitmap !== undefined) parents.set(disk, bitmap);
    const instant = await this.#domain.open({ repository, generation, parents }, signal);
    try {
      const exported = instant.disks.map(({ name, socket, exportName, bitmap }) => ({
        name,
        address: unixAddress(socket, exportName),
        bitmap,
      }));
      const disks = await openExports(exported, connections, signal);
      try {
        for (const { name, size } of this.#domain.disks) assertSize(name, size, disks.get(name)!.size);
        return pointInTime(instant, disks);
      } catch (error) {
        await closeExports(disks);
        throw error;
      }
    } catch (error) {
      await instant.close("failed");
      throw error;
    }
  }

  sizes(): Promise<Map<string, number>> {
    return Promise.resolve(new Map(this.#domain.disks.map(({ name, size }) => [name, size])));
  }

  /**
   * By what libvirt says of the checkpoints: as many chunks as changed blocks of 64 KiB can lie in. What a full or a rescan finds
   * allocated, it does not tell.
   */
  outlook(ways: ReadonlyMap<string, DiskWay>, chunkSize: number): Promise<Map<string, DiskOutlook>> {
    const outlooks = this.#domain.disks.map(({ name, size }): [string, DiskOutlook] => {
      const wanted = ways.get(name)?.bitmap;
      const dirty = this.#checkpoints.find((one) => one.name === wanted)?.disks.get(name)?.dirtyBytes;
      if (dirty === undefined) return [name, { size, readMax: size, readLikely: undefined }];
      const widest = Math.ceil(dirty / GRANULARITY) * Math.max(chunkSize, GRANULARITY);
      return [name, { size, readMax: Math.min(size, widest), readLikely: Math.min(size, dirty) }];
    });
    return Promise.resolve(new Map(outlooks));
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** Of a bitmap that QEMU makes by itself, bytes: an image's clusters, at most so much. */
const GRANULARITY = 64 * 1024;

function pointInTime(
  instant: DomainPointInTime,
  disks: Awaited<ReturnType<typeof openExports>>,
): PointInTime {
  const { consistency, frozenMs, takeMs, lost } = instant;
  const bitmaps = instant.disks.flatMap(({ name, checkpoint }) =>
    checkpoint === undefined ? [] : [[name, checkpoint] as const],
  );
  return {
    disks,
    consistency,
    bitmaps: new Map(bitmaps),
    guest: { frozenMs, takeMs },
    lost,
    assertAlive: (until) => instant.assertAlive(until),
    close: async (outcome) => {
      await closeExports(disks);
      await instant.close(outcome);
    },
  };
}

/** What libvirt said of a disk must be what QEMU shows: the plan stands on it. @throws AppError E_DOMAIN_CHANGED (source). */
function assertSize(disk: string, said: number, shown: number): void {
  if (said === shown) return;
  const message = `Disk ${disk} has ${shown} bytes, and libvirt said ${said}; run the backup again`;
  throw new AppError("source", "E_DOMAIN_CHANGED", message, { disk, said, shown });
}
