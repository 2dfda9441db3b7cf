import { AppError, messageOf } from "../errors.ts";
import type { SourceFormat } from "../image/formats.ts";
import { addImageBitmap, removeImageBitmap, whyReadOnly } from "../image/image-bitmaps.ts";
import { serveImage, type ServedImage } from "../image/image-source.ts";
import { inspectImage, looksLikeQcow2, type InspectedImage } from "../image/inspect.ts";
import { disabledBitmaps, staleBitmaps, type Ledger, type LedgerDisk } from "../qemu/bitmaps.ts";
import { BITMAP_GRANULARITY } from "../qemu/fleecing.ts";
import { generationBitmap } from "../qemu/names.ts";
import { candidates, planByBitmaps, type BitmapWish } from "./bitmap-plan.ts";
import { outlookOf } from "./held-still.ts";
import type { DiskWay, Plan } from "./plan.ts";
import type { Outcome, PointInTime } from "./point-in-time.ts";
import type { BackupSource, DiskOutlook, EarlierGenerations } from "./source.ts";

export interface WantedImage {
  /** The disk's name; undefined: that of the newest generation's, if it has one disk only, else `fallback`. */
  readonly disk: string | undefined;
  readonly fallback: string;
  /** Absolute. */
  readonly path: string;
  readonly format: SourceFormat;
}

export interface ImagesWish extends BitmapWish {
  readonly images: readonly WantedImage[];
  /** Begin no bitmap: the images stay as they are, to the byte. */
  readonly leave: boolean;
  /** NBD connections a disk; undefined: the client's default. */
  readonly connections: number | undefined;
}

/** An image as the disk that it is in the generation. */
interface ImageDisk extends WantedImage {
  readonly name: string;
  /** Begun by this run; undefined: none was. */
  newBitmap: string | undefined;
}

/**
 * Images that no VM runs on.
 *
 * As of a running VM, changes are told by persistent dirty bitmaps in a qcow2 image: QEMU records in them whenever it writes to
 * the image, be it for a VM or for qemu-img. A run begins a new one before it locks the image (a bitmap cannot be added to
 * an image that is read), so that what may be written in between is recorded by it, and told by the parent's as well: the new
 * one says rather too much than too little. Then everything is locked, and read.
 */
export class ImageSource implements BackupSource {
  readonly #wish: ImagesWish;
  /** In the order of the wish, as they were when they were looked at last. */
  #inspected: readonly InspectedImage[];
  #disks: readonly ImageDisk[] = [];

  private constructor(wish: ImagesWish, inspected: readonly InspectedImage[]) {
    this.#wish = wish;
    this.#inspected = inspected;
  }

  /** Looks at the images. @throws AppError as `inspectImage`. */
  static async connect(wish: ImagesWish, signal: AbortSignal): Promise<ImageSource> {
    const inspected = await inspectAll(wish.images, signal);
    for (const { path, format } of inspected) {
      if (format !== "raw" || !(await looksLikeQcow2(path))) continue;
      wish.warn(
        `${path} begins as a qcow2 image does and is read as raw all the same; if it is one, say --format qcow2`,
      );
    }
    return new ImageSource(wish, inspected);
  }

  async plan(earlier: EarlierGenerations): Promise<Plan> {
    const only = earlier.latest?.disks.length === 1 ? earlier.latest.disks[0]!.name : undefined;
    this.#disks = this.#wish.images.map((image) => ({
      ...image,
      name: image.disk ?? only ?? image.fallback,
      newBitmap: undefined,
    }));
    const ledger = ledgerOf(this.#disks, this.#inspected);
    const manifests = await candidates(earlier, ledger.disks, this.#wish.repository);
    return planByBitmaps(this.#wish, ledger, manifests);
  }

  async open(plan: Plan, generation: string, signal: AbortSignal): Promise<PointInTime> {
    const served = new Map<string, ServedImage>();
    let ending = false;
    const close = async (outcome: Outcome): Promise<void> => {
      ending = true;
      await closeAll(served);
      await this.#settle(outcome, generation);
    };
    try {
      for (const disk of this.#disks) await this.#begin(disk, generation, signal);
      for (const disk of this.#disks) served.set(disk.name, await this.#serve(disk, plan.ways, signal));
      // nobody can change them any more: only now it is certain what they are
      this.#inspected = await inspectAll(this.#disks, signal);
      this.#expectAsPlanned(plan);
      const deaths = [...served.values()].map(({ died }) => died);
      const lost = new Promise<never>((_, reject) => {
        Promise.race(deaths).catch((error: unknown) => {
          if (!ending) reject(error);
        });
      });
      lost.catch(() => undefined); // asked for by `assertAlive`
      return {
        disks: new Map([...served].map(([name, { disk }]) => [name, disk])),
        consistency: "unknown",
        bitmaps: new Map(
          this.#disks.flatMap(({ name, newBitmap }) => (newBitmap === undefined ? [] : [[name, newBitmap]])),
        ),
        lost,
        assertAlive: () => Promise.race([lost, Promise.resolve()]),
        close,
      };
    } catch (error) {
      await close("failed");
      throw error;
    }
  }

  sizes(): Promise<Map<string, number>> {
    const sizes = this.#disks.map(({ name }, index): [string, number] => [
      name,
      this.#inspected[index]!.size,
    ]);
    return Promise.resolve(new Map(sizes));
  }

  async outlook(
    ways: ReadonlyMap<string, DiskWay>,
    chunkSize: number,
    signal: AbortSignal,
  ): Promise<Map<string, DiskOutlook>> {
    const outlooks = new Map<string, DiskOutlook>();
    for (const disk of this.#disks) {
      const served = await this.#serve(disk, ways, signal);
      try {
        outlooks.set(disk.name, await outlookOf(served.disk, chunkSize, signal));
      } finally {
        await served.close();
      }
    }
    return outlooks;
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  async #serve(
    { name, path, format }: ImageDisk,
    ways: ReadonlyMap<string, DiskWay>,
    signal: AbortSignal,
  ): Promise<ServedImage> {
    const { connections } = this.#wish;
    return await serveImage({ path, format, bitmap: ways.get(name)?.bitmap, connections }, signal);
  }

  /**
   * Begins the bitmap of the generation to be, where the image can have one. Where it cannot the backup is made all the same,
   * for reading is safe; the next one is a rescan then, or goes by an older bitmap.
   */
  async #begin(disk: ImageDisk, generation: string, signal: AbortSignal): Promise<void> {
    const { leave, repository, warn } = this.#wish;
    signal.throwIfAborted();
    const ledger = this.#ledgerDisk(disk);
    if (leave || !ledger.canPersist) return;
    const readOnly = await whyReadOnly(disk.path);
    if (readOnly !== undefined) {
      warn(`Image ${disk.path} gets no bitmap, which the next incremental would go by: ${readOnly}`);
      return;
    }
    const name = generationBitmap(repository, generation, disk.name);
    try {
      for (const { name: disabled } of disabledBitmaps(ledger, repository))
        await removeImageBitmap(disk.path, disabled);
      disk.newBitmap = name; // also when it fails: it may be there
      await addImageBitmap(disk.path, name, BITMAP_GRANULARITY);
    } catch (error) {
      await removeImageBitmap(disk.path, name).catch(() => undefined);
      disk.newBitmap = undefined;
      // a template that other images stand on can be read, and not be changed; one that is written is refused when it is opened
      warn(`Image ${disk.path} gets no bitmap, which the next incremental would go by: ${messageOf(error)}`);
    }
  }

  /** @throws AppError E_IMAGE_CHANGED (source): between the plan and the lock somebody had it open. */
  #expectAsPlanned({ parent, ways }: Plan): void {
    for (const disk of this.#disks) {
      const { size, bitmaps } = this.#ledgerDisk(disk);
      const way = ways.get(disk.name)!;
      if (way.bitmap === undefined) continue;
      const bitmap = bitmaps.find(({ name }) => name === way.bitmap);
      if (size === way.parentDisk?.size && bitmap?.recording === true) continue;
      const message = `Image ${disk.path} was changed while its backup began, so that the bitmap since generation ${parent?.generation} is of no use; run it again`;
      throw new AppError("source", "E_IMAGE_CHANGED", message, { path: disk.path });
    }
  }

  /** Removes the bitmaps that the outcome makes superfluous. What cannot be removed is left to the next run. Never throws. */
  async #settle(outcome: Outcome, generation: string): Promise<void> {
    const { repository, warn } = this.#wish;
    for (const disk of this.#disks) {
      const { path, newBitmap } = disk;
      if (newBitmap === undefined || outcome === "unknown") continue;
      const stale =
        outcome === "failed"
          ? [newBitmap]
          : staleBitmaps([this.#ledgerDisk(disk)], repository, generation).map(({ name }) => name);
      try {
        for (const name of stale) await removeImageBitmap(path, name);
      } catch (error) {
        warn(`A bitmap that is of no use stays in ${path} until the next backup: ${messageOf(error)}`);
      }
    }
  }

  #ledgerDisk({ name, path }: ImageDisk): LedgerDisk {
    return ledgerDisk(
      name,
      this.#inspected.find((image) => image.path === path)!,
    );
  }
}

async function inspectAll(
  images: readonly WantedImage[],
  signal: AbortSignal,
): Promise<readonly InspectedImage[]> {
  const inspected: InspectedImage[] = [];
  for (const { path, format } of images) inspected.push(await inspectImage(path, format, signal));
  return inspected;
}

function ledgerOf(disks: readonly ImageDisk[], inspected: readonly InspectedImage[]): Ledger {
  return {
    disks: disks.map(({ name }, index) => ledgerDisk(name, inspected[index]!)),
    nodes: inspected.flatMap(({ path, bitmaps, below }) =>
      [{ path, bitmaps }, ...below].map((image) => ({
        name: image.path,
        bitmaps: image.bitmaps.map((bitmap) => ({ ...bitmap, busy: false })),
      })),
    ),
  };
}

function ledgerDisk(name: string, { path, format, size, canPersist, bitmaps }: InspectedImage): LedgerDisk {
  return {
    name,
    node: path,
    driver: format,
    size,
    canPersist,
    bitmaps: bitmaps.map((bitmap) => ({ ...bitmap, busy: false })),
  };
}

async function closeAll(served: ReadonlyMap<string, ServedImage>): Promise<void> {
  await Promise.allSettled([...served.values()].map((image) => image.close()));
}
