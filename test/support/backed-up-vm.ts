import { execFile } from "node:child_process";
import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, onTestFinished } from "vitest";
import type { Extent } from "../../src/disk/disk.ts";
import { openNbdSource } from "../../src/nbd/source.ts";
import { parseNbdUri } from "../../src/nbd/uri.ts";
import { chooseParent, type BitmapWay, type KnownGeneration } from "../../src/qemu/bitmaps.ts";
import { surveyVm, type Vm, type VmNode } from "../../src/qemu/inventory.ts";
import { generationBitmap, tokenOfRun } from "../../src/qemu/names.ts";
import {
  QemuVm,
  type OpenedQemuDisk,
  type QemuPointInTime,
  type QemuSourceOptions,
  type StartGuard,
} from "../../src/qemu/point-in-time.ts";
import { QmpClient } from "../../src/qemu/qmp/client.ts";
import { temporaryFolder } from "./folder.ts";
import { all } from "./outcomes.ts";
import { QmpProxy } from "./qmp-proxy.ts";
import {
  QEMU_10,
  startQemuVm,
  writeAsGuest,
  type QemuVm as QemuProcess,
  type QemuVmDisk,
} from "./qemu-vm.ts";

const run = promisify(execFile);
const never = new AbortController().signal;

export const REPOSITORY = "11111111-2222-4333-8444-555555555555";

/** The id of the generation of this number. */
export function generation(number: number): string {
  return `01990000-0000-7000-8000-${String(number).padStart(12, "0")}`;
}

/** A guard that does nothing: nobody but the next run cleans up. */
const NO_GUARD: StartGuard = () =>
  Promise.resolve({
    freeze: () => Promise.resolve(0),
    thaw: () => Promise.resolve({ frozenMs: 0, overrun: false }),
    finish: () => Promise.resolve(),
    died: new Promise<never>(() => undefined),
  });

/** The QEMU that can do it. */
export function qemuFor(fleecing: "classic" | "filter"): string | undefined {
  return fleecing === "filter" ? QEMU_10 : undefined;
}

export interface TestDisk {
  readonly node: string;
  /** Bytes. */
  readonly size: number;
  readonly format?: "qcow2" | "raw";
  /** Further options of qemu-img create: `["-o", "compat=0.10"]`. */
  readonly create?: readonly string[];
}

/** A QEMU with disks, a monitor for the run that is tested, and one for the test itself. */
export class BackedUpVm {
  disks: readonly QemuVmDisk[];
  /** Of the run; empty when none is under way. */
  readonly scratchDir: string;
  readonly warnings: string[] = [];
  process!: QemuProcess;
  /** The test's own monitor. */
  hand!: QmpClient;
  /** Between the run and its monitor. */
  proxy!: QmpProxy;
  readonly #args: readonly string[];
  readonly #program: string | undefined;

  private constructor(
    disks: readonly QemuVmDisk[],
    scratchDir: string,
    args: readonly string[],
    program?: string,
  ) {
    this.disks = disks;
    this.scratchDir = scratchDir;
    this.#args = args;
    this.#program = program;
  }

  /** It all goes when the test ends. @param args more of QEMU's. @param program another QEMU. */
  static async start(
    disks: readonly TestDisk[],
    args: readonly string[] = [],
    program?: string,
  ): Promise<BackedUpVm> {
    const folder = await temporaryFolder();
    const made = await Promise.all(
      disks.map(async ({ node, size, format = "qcow2", create = [] }) => {
        const path = join(folder, `${node}.${format}`);
        await run("qemu-img", ["create", "-q", "-f", format, ...create, path, String(size)]);
        return { node, path, format };
      }),
    );
    const scratchDir = join(folder, "scratch");
    await mkdir(scratchDir);
    const vm = new BackedUpVm(made, scratchDir, args, program);
    await vm.boot();
    return vm;
  }

  /** Starts QEMU (again) with `disks`. */
  async boot(): Promise<void> {
    const vm = await startQemuVm({
      disks: this.disks,
      ...(this.#program !== undefined && { program: this.#program }),
      args: (folder) => [...this.#args, "-qmp", `unix:${join(folder, "hand.sock")},server=on,wait=off`],
    });
    onTestFinished(() => vm.stop());
    this.process = vm;
    this.hand = await QmpClient.connect(join(vm.folder, "hand.sock"), never);
    const { hand } = this;
    onTestFinished(() => hand.close());
    await (this.proxy as QmpProxy | undefined)?.close();
    this.proxy = await QmpProxy.start(vm.qmp, join(this.scratchDir, "..", "qmp.sock"));
  }

  /** Ends QEMU in good order: bitmaps are stored. */
  async quit(): Promise<void> {
    await this.hand.execute("quit", undefined, never);
    await this.process.exited;
  }

  options(more: Partial<QemuSourceOptions> = {}): QemuSourceOptions {
    return {
      qmp: this.proxy.path,
      freeze: "auto",
      freezeBudgetMs: 60_000,
      fleecing: "auto",
      scratchDir: this.scratchDir,
      warn: (message) => this.warnings.push(message),
      ...more,
    };
  }

  /** Connects as a run does. Closed when the test ends. */
  async connect(token: string, more: Partial<QemuSourceOptions> = {}): Promise<QemuVm> {
    const vm = await QemuVm.connect(this.options(more), token, never);
    onTestFinished(() => vm.close());
    return vm;
  }

  /** Writes as the guest would. */
  async write(node: string, offset: number, length: number, byte: number): Promise<void> {
    await writeAsGuest(this.hand, node, { offset, length, byte });
  }

  async survey(): Promise<Vm> {
    return await surveyVm(this.hand, never);
  }

  /** All that a run could leave behind, in a form to be compared. No run may be under way. */
  async picture(): Promise<object> {
    const { status, disks, jobs, exports, nodes } = await this.survey();
    return {
      status,
      jobs,
      exports,
      disks: disks.map(({ name, node }) => ({ name, node })),
      nodes: nodes.map(pictureOf).toSorted((a, b) => (a.name < b.name ? -1 : 1)),
      files: await readdir(this.scratchDir),
      server: await this.hand.execute("nbd-server-stop", undefined, never).then(
        () => "an NBD server ran",
        () => "no NBD server",
      ),
    };
  }

  /** Names of the bitmaps on each node of a disk. */
  async bitmaps(): Promise<Record<string, readonly string[]>> {
    const { disks } = await this.survey();
    return Object.fromEntries(disks.map((disk) => [disk.node, disk.bitmaps.map(({ name }) => name).sort()]));
  }
}

function pictureOf({ name, bitmaps }: VmNode): { name: string; bitmaps: object[] } {
  const seen = bitmaps.map((bitmap) => ({ ...bitmap, dirtyBytes: "not compared" }));
  return { name, bitmaps: seen.toSorted((a, b) => (a.name < b.name ? -1 : 1)) };
}

export function bitmapOf(number: number, node: string): string {
  return generationBitmap(REPOSITORY, generation(number), `dev-${node}`);
}

/** A generation that the repository lists. */
export function known(number: number, disks: readonly TestDisk[]): KnownGeneration {
  const sizes = disks.map(({ node, size }) => [`dev-${node}`, { size }] as const);
  return { generation: generation(number), disks: new Map(sizes) };
}

export interface OpenRun {
  readonly vm: QemuVm;
  readonly pit: QemuPointInTime;
  /** By the disk's name. */
  readonly ways: ReadonlyMap<string, BitmapWay>;
}

/**
 * A run of generation `number`, done as the main job does it, as far as the open point in time.
 *
 * @param listed the generations of the repository, newest first.
 */
export async function openRun(
  tested: BackedUpVm,
  number: number,
  listed: readonly KnownGeneration[] = [],
  more: Partial<QemuSourceOptions> = {},
  {
    guarded = false,
    signal = never,
    repository = REPOSITORY,
  }: { guarded?: boolean; signal?: AbortSignal; repository?: string } = {},
): Promise<OpenRun> {
  const vm = await tested.connect(tokenOfRun(generation(number)), more);
  try {
    await vm.mergeBack(repository, listed, never);
    const { ways } = chooseParent({ disks: vm.disks, nodes: vm.vm.nodes }, repository, listed);
    const parentBitmaps = new Map(
      [...ways].flatMap(([disk, { bitmap }]) => (bitmap === undefined ? [] : [[disk, bitmap] as const])),
    );
    const plan = { repository, generation: generation(number), parentBitmaps };
    return { vm, pit: await vm.open(plan, signal, guarded ? undefined : NO_GUARD), ways };
  } catch (error) {
    await vm.close();
    throw error;
  }
}

export async function commit({ vm, pit }: OpenRun): Promise<void> {
  await pit.assertAlive(never);
  await pit.close("committed");
  await vm.close();
}

/** What an export shows. */
export async function readExport(disk: OpenedQemuDisk, offset: number, length: number): Promise<Buffer> {
  const source = await openNbdSource(addressOf(disk), {}, never);
  try {
    const bytes = Buffer.alloc(length);
    await source.read(offset, bytes, never);
    return bytes;
  } finally {
    await source.close();
  }
}

/** Fails when an export shows anything else. Not by `toEqual`, which takes minutes to tell two buffers apart. */
export async function expectShows(disk: OpenedQemuDisk, offset: number, bytes: Buffer): Promise<void> {
  const shown = await readExport(disk, offset, bytes.length);
  const wrong = shown.findIndex((byte, index) => byte !== bytes[index]);
  expect(wrong < 0 ? "all is right" : `at ${offset + wrong}: ${shown[wrong]!}`).toBe("all is right");
}

/** The extents that are not unchanged, by the export's bitmap. */
export async function changesOf(disk: OpenedQemuDisk): Promise<Extent[]> {
  const source = await openNbdSource(addressOf(disk), { bitmap: disk.bitmap! }, never);
  try {
    const extents = await all(source.extents({ offset: 0, length: source.size }, never));
    return extents.filter((extent) => extent.state !== "unchanged");
  } finally {
    await source.close();
  }
}

function addressOf({ exportName, socket }: OpenedQemuDisk): ReturnType<typeof parseNbdUri> {
  return parseNbdUri(`nbd+unix:///${encodeURIComponent(exportName)}?socket=${encodeURIComponent(socket)}`);
}
