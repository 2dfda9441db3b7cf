import { KiB, MiB } from "../../src/bytes/size.ts";
import { readBitmapRanges, type BitmapRanges } from "../../src/qemu/bitmap-ranges.ts";
import { addBitmap, removeBitmap, type NewBitmap, type VerbOptions } from "../../src/qemu/bitmap-verbs.ts";
import type { VmBitmap } from "../../src/qemu/inventory.ts";
import { temporaryFolder } from "./folder.ts";
import { HandledVm, type HandledDisk } from "./handled-vm.ts";

const never = new AbortController().signal;

export const GRANULE = 64 * KiB;

/** The second one's last granule is short. */
const DISKS: readonly HandledDisk[] = [
  { node: "drive0", size: 16 * MiB },
  { node: "drive1", size: 8 * MiB + 4608 },
  { node: "drive2", size: 8 * MiB, format: "raw" },
];

/** The verbs on a VM of three disks; the disk is `dev-drive0` unless said otherwise. */
export class VerbsVm {
  readonly warnings: string[] = [];
  readonly #folder: string;
  #vm: HandledVm;

  private constructor(folder: string, vm: HandledVm) {
    this.#folder = folder;
    this.#vm = vm;
  }

  static async start(...args: string[]): Promise<VerbsVm> {
    const folder = await temporaryFolder();
    return new VerbsVm(folder, await HandledVm.start(DISKS, { folder, args }));
  }

  get vm(): HandledVm {
    return this.#vm;
  }

  get options(): VerbOptions {
    const { qmp, scratch: scratchDir } = this.#vm;
    return { qmp, scratchDir, warn: (message) => this.warnings.push(message) };
  }

  /** QEMU again, with the same images. The one before has ended. */
  async restart(): Promise<void> {
    this.#vm = await HandledVm.start(DISKS, { folder: this.#folder });
  }

  add(name: string, more: Partial<NewBitmap> = {}): Promise<VmBitmap> {
    const wish = { disk: "dev-drive0", disabled: false, transient: false, ...more };
    return addBitmap(this.options, { name, ...wish }, never);
  }

  /** By the test's own hand, on drive0. */
  async addByHand(name: string, more: object = {}): Promise<void> {
    await this.#vm.do("block-dirty-bitmap-add", { node: "drive0", name, persistent: true, ...more });
  }

  remove(name: string, force = false, disk = "dev-drive0"): Promise<void> {
    return removeBitmap(this.options, { disk, name }, force, never);
  }

  ranges(name: string, disk = "dev-drive0"): Promise<BitmapRanges> {
    return readBitmapRanges(this.options, { disk, name }, never);
  }

  /** A bitmap that was stored, loaded, and lost in a crash. */
  async lose(name: string): Promise<void> {
    await this.addByHand(name);
    await this.#vm.quit();
    await this.restart();
    await this.#vm.kill();
    await this.restart();
  }
}
