import { bitmapActions, type Fleecing, type RunDisk, type View } from "./fleecing.ts";
import { queryJobs } from "./inventory.ts";
import type { RunNames } from "./names.ts";
import type { QmpClient } from "./qmp/client.ts";
import { attachScratch, type Scratch } from "./scratch.ts";

/** A job that was paused still copies before each write. */
const ALIVE = ["running", "paused"];

/**
 * Fleecing by `blockdev-backup sync=none`: the job's filter, over the disk, copies to a scratch image whose backing
 * is the disk; that image is exported. One command for all disks and bitmaps, on every QEMU and every device.
 *
 * A write that cannot be copied fails, in the guest: with no space left QEMU stops the VM until the job is gone. That
 * is why it is not `on-cbw-error=break-snapshot`: the image would then go on, without a word, with the new data.
 */
export class ClassicFleecing implements Fleecing {
  readonly #client: QmpClient;
  readonly #names: RunNames;
  readonly #disks: readonly RunDisk[];

  constructor(client: QmpClient, names: RunNames, disks: readonly RunDisk[]) {
    this.#client = client;
    this.#names = names;
    this.#disks = disks;
  }

  async attach(scratch: readonly Scratch[], signal: AbortSignal): Promise<void> {
    for (const { index, disk } of this.#disks) {
      const image = { ...scratch[index]!, backing: disk.node };
      await attachScratch(this.#client, this.#names, index, image, signal);
    }
  }

  /**
   * Jobs first: each keeps its disk quiet until the whole transaction is done. Bitmap actions before them would run
   * while a disk in an iothread takes writes, which would then be in the image and not in the bitmap.
   */
  async take(signal: AbortSignal): Promise<void> {
    const names = this.#names;
    const jobs = this.#disks.map(({ index, disk }) => ({
      type: "blockdev-backup",
      data: {
        "job-id": names.job(index),
        device: disk.node,
        target: names.node("s", index),
        sync: "none",
        "filter-node-name": names.node("b", index),
      },
    }));
    const bitmaps = this.#disks.flatMap((disk) => bitmapActions(disk, names));
    await this.#client.execute("transaction", { actions: [...jobs, ...bitmaps] }, signal);
  }

  view({ index, parent }: RunDisk): Promise<View> {
    const bitmaps = parent === undefined ? [] : [this.#names.temporaryBitmap];
    return Promise.resolve({ node: this.#names.node("s", index), bitmaps });
  }

  /** Without its job an export shows, without an error, the disk as it is now. */
  async whatBroke(signal: AbortSignal): Promise<string | undefined> {
    const jobs = await queryJobs(this.#client, signal);
    const gone = this.#disks.find(({ index }) => {
      const job = jobs.find(({ id }) => id === this.#names.job(index));
      return job === undefined || !ALIVE.includes(job.status);
    });
    return gone && `the job ${this.#names.job(gone.index)} of disk ${gone.disk.name} has ended`;
  }
}
