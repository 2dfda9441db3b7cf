import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import { surveyVm, type Vm } from "../../src/qemu/inventory.ts";
import { QmpClient } from "../../src/qemu/qmp/client.ts";
import { createQcow2, qemuImg } from "./exported-images.ts";
import { startQemuVm, writeAsGuest, type QemuVm } from "./qemu-vm.ts";

const never = new AbortController().signal;

export interface HandledDisk {
  /** Of its block node; the disk is called `dev-NODE`. */
  readonly node: string;
  /** Bytes. */
  readonly size: number;
  readonly format?: "qcow2" | "raw";
}

/**
 * A VM with two monitors: `qmp`, which is free for the program under test, and a hand that the test has on it all
 * the time. Both it and its images go with the test.
 */
export class HandledVm {
  readonly qmp: string;
  /** An absolute path in the VM's folder; not there yet. */
  readonly scratch: string;
  readonly folder: string;
  readonly exited: QemuVm["exited"];
  readonly pid: number;
  readonly images: ReadonlyMap<string, string>;
  readonly #hand: QmpClient;
  readonly #stop: () => Promise<void>;

  private constructor(vm: QemuVm, hand: QmpClient, images: ReadonlyMap<string, string>) {
    this.qmp = vm.qmp;
    this.folder = vm.folder;
    this.scratch = join(vm.folder, "scratch");
    this.exited = vm.exited;
    this.pid = vm.pid;
    this.images = images;
    this.#hand = hand;
    this.#stop = async () => {
      await hand.close();
      await vm.stop();
    };
  }

  /** @param images made before, in place of new ones: what a VM that ended left behind. */
  static async start(
    disks: readonly HandledDisk[],
    { folder, args = [] }: { readonly folder: string; readonly args?: readonly string[] },
  ): Promise<HandledVm> {
    const images = new Map<string, string>();
    for (const { node, size, format = "qcow2" } of disks) {
      const path = join(folder, `${node}.${format}`);
      images.set(node, path);
      if ((await readdir(folder)).includes(`${node}.${format}`)) continue;
      if (format === "qcow2") await createQcow2(path, size);
      else await qemuImg("create", "-q", "-f", "raw", path, String(size));
    }
    const vm = await startQemuVm({
      disks: disks.map(({ node, format = "qcow2" }) => ({ node, format, path: images.get(node)! })),
      args: (own) => ["-qmp", `unix:${own}/hand.sock,server=on,wait=off`, ...args],
    });
    const hand = await QmpClient.connect(join(vm.folder, "hand.sock"), never);
    const handled = new HandledVm(vm, hand, images);
    onTestFinished(() => handled.#stop());
    return handled;
  }

  async do(command: string, args?: object): Promise<unknown> {
    return await this.#hand.execute(command, args, never);
  }

  async write(node: string, offset: number, length: number, byte = 1): Promise<void> {
    await writeAsGuest(this.#hand, node, { offset, length, byte });
  }

  /** Closes its images in order. */
  async quit(): Promise<void> {
    await this.do("quit");
    await this.exited;
  }

  /** As a crash of the host would. */
  async kill(): Promise<void> {
    process.kill(this.pid, "SIGKILL");
    await this.exited;
  }

  /**
   * What a backup of one disk that died leaves: a job with its filter over the disk, a scratch image, a temporary
   * bitmap. Its mark is another matter (`RunFile`).
   */
  async leaveRun(token: string, node: string): Promise<void> {
    const { size } = (await this.survey()).disks.find((disk) => disk.node === node)!;
    const path = join(this.scratch, `bk-${token}-0.qcow2`);
    const [image, file] = [`bk-${token}-s0`, `bk-${token}-f0`];
    await mkdir(this.scratch, { recursive: true });
    await createQcow2(path, size);
    await this.do("blockdev-add", { driver: "file", filename: path, "node-name": file });
    await this.do("blockdev-add", { driver: "qcow2", "node-name": image, file, backing: node });
    const temporary = { node, name: `bk-${token}-tmp`, persistent: false, disabled: true };
    await this.do("block-dirty-bitmap-add", temporary);
    const job = { "job-id": `bk-${token}-job-0`, "filter-node-name": `bk-${token}-b0` };
    await this.do("blockdev-backup", { ...job, device: node, target: image, sync: "none" });
  }

  /** The VM starts its NBD server on a socket of its own and exports this node as "theirs". */
  async exportByHand(node: string, more: object = {}): Promise<void> {
    const addr = { type: "unix", data: { path: join(this.folder, "theirs.sock") } };
    await this.do("nbd-server-start", { addr });
    await this.do("block-export-add", { type: "nbd", id: "theirs", "node-name": node, ...more });
  }

  async survey(): Promise<Vm> {
    return await surveyVm(this.#hand, never);
  }

  /** Bitmaps by node, each with what is dirty in it. */
  async bitmaps(): Promise<Record<string, Record<string, number>>> {
    const nodes = (await this.survey()).nodes.filter(({ bitmaps }) => bitmaps.length > 0);
    const dirt = (bitmaps: Vm["nodes"][number]["bitmaps"]): [string, number][] =>
      bitmaps.map(({ name, dirtyBytes }) => [name, dirtyBytes]);
    return Object.fromEntries(nodes.map(({ name, bitmaps }) => [name, Object.fromEntries(dirt(bitmaps))]));
  }

  /** All that a run could leave behind: in QEMU, whether its NBD server runs, and in the scratch folder. */
  async picture(): Promise<object> {
    const { status, exports, jobs, nodes } = await this.survey();
    return {
      status,
      exports,
      jobs,
      nodes: nodes.map(({ name, bitmaps }) => ({ name, bitmaps: bitmaps.map((one) => one.name).sort() })),
      nbdServer: await this.#nbdServerRuns(),
      files: await readdir(this.scratch).catch(() => []),
    };
  }

  /** QEMU does not tell, but it has one alone. */
  async #nbdServerRuns(): Promise<boolean> {
    const addr = { type: "unix", data: { path: join(this.folder, "probe.sock") } };
    try {
      await this.do("nbd-server-start", { addr });
    } catch {
      return true;
    }
    await this.do("nbd-server-stop");
    return false;
  }
}
