import { AppError } from "../errors.ts";
import { bitmapActions, type Action, type Fleecing, type RunDisk, type View } from "./fleecing.ts";
import { queryDisks, queryStatus, type Vm } from "./inventory.ts";
import type { RunNames } from "./names.ts";
import type { QmpClient } from "./qmp/client.ts";
import type { QmpSchema } from "./qmp/schema.ts";
import type { RunFile } from "./run-file.ts";
import { attachScratch, type Scratch } from "./scratch.ts";

/**
 * Seconds that the guest's write waits for the scratch. QEMU 7.2 counts nanoseconds in 32 bits: 4 is the most that
 * it gets right.
 */
const COPY_TIMEOUT_S = 4;

/** How long a VM that we stopped may take to go on, in milliseconds. */
const RESUME_MS = 20_000;

/**
 * Fleecing by a `copy-before-write` filter that is put between each disk and its device, and read through
 * `snapshot-access`. A scratch that fails breaks the view, whose reads then fail, and never the guest's write.
 *
 * Putting in a filter is no step of a transaction, so the VM stands still for some milliseconds meanwhile.
 *
 * The filter gets no bitmap, although it would then copy only what is going to be read: it would refuse reads of the
 * rest, and a chunk may reach beyond what is dirty.
 */
export class FilterFleecing implements Fleecing {
  readonly #client: QmpClient;
  readonly #names: RunNames;
  readonly #disks: readonly RunDisk[];
  readonly #mark: RunFile;

  /** @param mark told while the VM stands still. */
  constructor(client: QmpClient, names: RunNames, disks: readonly RunDisk[], mark: RunFile) {
    this.#client = client;
    this.#names = names;
    this.#disks = disks;
    this.#mark = mark;
  }

  /**
   * QEMU 7.2 was tried, and is wrong: a read that begins in what the guest has overwritten since and ends behind it gives
   * the new data, without an error (fixed by a4d5224c, of 8.0); and beside iothreads it dies. The oldest that was tried
   * and is right is 10.0.
   *
   * @throws AppError E_FLEECING (usage) where it is not sound.
   */
  static check({ version: { major, minor } }: Pick<Vm, "version">, schema: QmpSchema): void {
    const refuse = (why: string): never => {
      throw new AppError(
        "usage",
        "E_FLEECING",
        `Filter fleecing does not work here: ${why}; use --fleecing classic`,
      );
    };
    if (major < 10) {
      refuse(`QEMU ${major}.${minor} may give what the guest wrote since for what was before; 10.0 is right`);
    }
    const can =
      schema.hasArgument("blockdev-add", ["driver=copy-before-write", "on-cbw-error"]) &&
      schema.hasArgument("blockdev-add", ["driver=snapshot-access"]);
    if (!can) refuse(`this QEMU ${major}.${minor} was built without copy-before-write or snapshot-access`);
  }

  async attach(scratch: readonly Scratch[], signal: AbortSignal): Promise<void> {
    for (const { index } of this.#disks) {
      await attachScratch(this.#client, this.#names, index, scratch[index]!, signal);
    }
  }

  async take(signal: AbortSignal): Promise<void> {
    if ((await queryStatus(this.#client, signal)) === "running") await this.#takeStopped(signal);
    else await this.#putIn(signal);
  }

  /** Whatever happens, the VM goes on. */
  async #takeStopped(signal: AbortSignal): Promise<void> {
    await this.#mark.setStopped(true);
    try {
      await this.#client.execute("stop", undefined, signal);
      await this.#putIn(signal);
    } finally {
      await this.#client.execute("cont", undefined, AbortSignal.timeout(RESUME_MS));
    }
    await this.#mark.setStopped(false);
  }

  async #putIn(signal: AbortSignal): Promise<void> {
    const client = this.#client;
    const actions = this.#disks.flatMap((disk) => [
      this.#markAction(disk),
      ...bitmapActions(disk, this.#names),
    ]);
    await client.execute("transaction", { actions }, signal);
    for (const { index, disk } of this.#disks) {
      const filter = {
        driver: "copy-before-write",
        "node-name": this.#names.node("c", index),
        file: disk.node,
        target: this.#names.node("s", index),
        "on-cbw-error": "break-snapshot",
        "cbw-timeout": COPY_TIMEOUT_S,
        discard: "unmap", // the guest's own still reach the disk
      };
      await client.execute("blockdev-add", filter, signal);
    }
    for (const { index, disk } of this.#disks) {
      const value = this.#names.node("c", index);
      await client.execute("qom-set", { path: disk.qdev, property: "drive", value }, signal);
    }
  }

  /** A bitmap that says which node the filter was put over, for whoever takes the filter out. */
  #markAction({ index, disk }: RunDisk): Action {
    const name = this.#names.markBitmap(index);
    return {
      type: "block-dirty-bitmap-add",
      data: { node: disk.node, name, persistent: false, disabled: true },
    };
  }

  async view({ index, disk, parent }: RunDisk, signal: AbortSignal): Promise<View> {
    const node = this.#names.node("a", index);
    await this.#client.execute(
      "blockdev-add",
      { driver: "snapshot-access", "node-name": node, file: this.#names.node("c", index) },
      signal,
    );
    const bitmap = { node: disk.node, name: this.#names.temporaryBitmap };
    return { node, bitmaps: parent === undefined ? [] : [bitmap] };
  }

  /** A filter that is not on the guest's way copies nothing. */
  async whatBroke(signal: AbortSignal): Promise<string | undefined> {
    const roots = new Set((await queryDisks(this.#client, signal)).map((disk) => disk.node));
    const gone = this.#disks.find(({ index }) => !roots.has(this.#names.node("c", index)));
    return gone && `the filter ${this.#names.node("c", gone.index)} of disk ${gone.disk.name} was taken out`;
  }
}
