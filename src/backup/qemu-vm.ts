import { unixAddress } from "../nbd/uri.ts";
import { tokenOfRun } from "../qemu/names.ts";
import { QemuVm, type OpenedQemuDisk, type QemuSourceOptions } from "../qemu/point-in-time.ts";
import { candidates, knownGeneration, planByBitmaps } from "./bitmap-plan.ts";
import { closeExports, openExports } from "./nbd-exports.ts";
import type { DiskWay, Plan } from "./plan.ts";
import type { PointInTime } from "./point-in-time.ts";
import type { BackupSource, DiskOutlook, EarlierGenerations } from "./source.ts";

export interface QemuWish extends QemuSourceOptions {
  /** The source's name in the repository. */
  readonly source: string;
  /** The repository's id: bitmaps bear it, so that several repositories can back up one VM. */
  readonly repository: string;
  /** Read everything and stand on nothing. */
  readonly full: boolean;
  /** NBD connections a disk; undefined: the client's default. */
  readonly connections: number | undefined;
}

/**
 * A running QEMU, driven over its monitor: we freeze the guest, have QEMU make the point in time and begin new
 * bitmaps in one go, thaw, read, and say how it ended.
 */
export class QemuSource implements BackupSource {
  readonly #vm: QemuVm;
  readonly #wish: QemuWish;
  readonly #purpose: "backup" | "look";

  private constructor(vm: QemuVm, wish: QemuWish, purpose: "backup" | "look") {
    this.#vm = vm;
    this.#wish = wish;
    this.#purpose = purpose;
  }

  /** @param run its id. @param purpose "look": nothing is changed in the VM. @throws as `QemuVm.connect`. */
  static async connect(
    wish: QemuWish,
    run: string,
    purpose: "backup" | "look",
    signal: AbortSignal,
  ): Promise<QemuSource> {
    return new QemuSource(await QemuVm.connect(wish, tokenOfRun(run), signal, purpose), wish, purpose);
  }

  async plan(earlier: EarlierGenerations, signal: AbortSignal): Promise<Plan> {
    const { repository, warn } = this.#wish;
    const manifests = await candidates(earlier, this.#vm.disks, repository);
    const known = manifests.map(knownGeneration);
    if (this.#purpose === "backup") {
      for (const disk of await this.#vm.mergeBack(repository, known, signal))
        warn(`The bitmaps of disk ${disk} were joined again: an earlier backup ended between them`);
    }
    const { disks, vm } = this.#vm;
    return planByBitmaps(this.#wish, { disks, nodes: vm.nodes }, manifests);
  }

  async open(plan: Plan, generation: string, signal: AbortSignal): Promise<PointInTime> {
    const { repository, connections } = this.#wish;
    const parentBitmaps = new Map<string, string>();
    for (const [disk, { bitmap }] of plan.ways) if (bitmap !== undefined) parentBitmaps.set(disk, bitmap);
    const instant = await this.#vm.open({ repository, generation, parentBitmaps }, signal);
    try {
      const disks = await openExports(instant.disks.map(exportOf), connections, signal);
      return {
        disks,
        consistency: instant.consistency,
        bitmaps: new Map(instant.disks.map(({ name, newBitmap }) => [name, newBitmap])),
        guest: { frozenMs: instant.frozenMs, takeMs: instant.takeMs },
        lost: instant.lost,
        assertAlive: (until) => instant.assertAlive(until),
        close: async (outcome) => {
          await closeExports(disks);
          await instant.close(outcome);
        },
      };
    } catch (error) {
      await instant.close("failed");
      throw error;
    }
  }

  sizes(): Promise<Map<string, number>> {
    return Promise.resolve(new Map(this.#vm.disks.map(({ name, size }) => [name, size])));
  }

  /**
   * By the bitmaps: a bit that is set in each of as many chunks as can be. What a full or a rescan finds allocated, the monitor
   * does not tell.
   */
  outlook(ways: ReadonlyMap<string, DiskWay>, chunkSize: number): Promise<Map<string, DiskOutlook>> {
    const outlooks = this.#vm.disks.map(({ name, size, bitmaps }): [string, DiskOutlook] => {
      const wanted = ways.get(name)?.bitmap;
      const bitmap = bitmaps.find((one) => wanted !== undefined && one.name === wanted);
      if (bitmap === undefined) return [name, { size, readMax: size, readLikely: undefined }];
      const { dirtyBytes, granularity } = bitmap;
      const widest = Math.ceil(dirtyBytes / granularity) * Math.max(chunkSize, granularity);
      return [name, { size, readMax: Math.min(size, widest), readLikely: Math.min(size, dirtyBytes) }];
    });
    return Promise.resolve(new Map(outlooks));
  }

  async close(): Promise<void> {
    await this.#vm.close();
  }
}

function exportOf({
  name,
  socket,
  exportName,
  bitmap,
}: OpenedQemuDisk): Parameters<typeof openExports>[0][0] {
  return { name, address: unixAddress(socket, exportName), bitmap };
}
