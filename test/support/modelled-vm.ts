import { execFile, type ChildProcess } from "node:child_process";
import { hash } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { parseGenerationBitmap } from "../../src/qemu/names.ts";
import { BackedUpVm, type TestDisk } from "./backed-up-vm.ts";
import type { ProxiedCommand } from "./qmp-proxy.ts";
import type { TestRepository } from "./repositories.ts";
import { tracesIn } from "./traces.ts";
import { generationBegun, generationOf, runVmBackup, type VmGenerationJson, type VmRun } from "./vm-runs.ts";

const run = promisify(execFile);
const never = new AbortController().signal;

/** SHA-256 of what each disk holds, by the disk's name. */
export type Picture = Readonly<Record<string, string>>;

/**
 * A QEMU without a guest, whose disks are written over its monitor, and beside it what they hold. Disk `drive0` of
 * the test is `dev-drive0` to the program.
 */
export class ModelledVm {
  readonly vm: BackedUpVm;
  /** By generation, whether it came to be or not: the disks at its instant. */
  readonly pictures = new Map<string, Picture>();
  /** Called between the instant and the answer to it: writes of then are not in the generation. */
  atInstant: () => Promise<unknown> = () => Promise.resolve();
  /** By node. */
  readonly #content = new Map<string, Buffer>();
  /** By node: the image below the one that takes the writes, and its size. */
  readonly #bases = new Map<string, { readonly path: string; readonly size: number }>();
  #overlays = 0;

  private constructor(vm: BackedUpVm) {
    this.vm = vm;
  }

  /** It all goes when the test ends. @param program another QEMU than the system's. */
  static async start(disks: readonly TestDisk[], program?: string): Promise<ModelledVm> {
    const modelled = new ModelledVm(await BackedUpVm.start(disks, [], program));
    for (const { node, size } of disks) modelled.#content.set(node, Buffer.alloc(size));
    return modelled;
  }

  get nodes(): readonly string[] {
    return [...this.#content.keys()];
  }

  size(node: string): number {
    return this.#content.get(node)!.length;
  }

  /** @param byte 0: zeros that QEMU knows of as such. */
  async write(node: string, offset: number, length: number, byte: number): Promise<void> {
    const zeros = byte === 0;
    if (zeros) await this.#io(node, `write -z -u ${offset} ${length}`);
    else await this.#io(node, `write -P ${byte} ${offset} ${length}`);
    this.#content.get(node)!.fill(byte, offset, offset + length);
  }

  /** What was written until here outlives a QEMU that is killed. */
  async flush(): Promise<void> {
    for (const node of this.nodes) await this.#io(node, "flush");
  }

  /** What is new reads as zeros. @param size a multiple of 512. */
  async resize(node: string, size: number): Promise<void> {
    await this.vm.hand.execute("block_resize", { "node-name": await this.topOf(node), size }, never);
    const resized = Buffer.alloc(size);
    this.#content.get(node)!.copy(resized);
    this.#content.set(node, resized);
  }

  /** An image over the disk's takes the writes from now on. */
  async snapshot(node: string): Promise<void> {
    const name = `over-${++this.#overlays}`;
    const path = join(this.vm.scratchDir, "..", `${name}.qcow2`);
    const base = this.vm.disks.find((disk) => disk.node === node)!.path;
    await run("qemu-img", [
      ..."create -q -u -f qcow2 -F qcow2 -b".split(" "),
      base,
      path,
      `${this.size(node)}`,
    ]);
    const file = { driver: "file", filename: path };
    const overlay = { "node-name": name, driver: "qcow2", discard: "unmap", file, backing: null };
    await this.vm.hand.execute("blockdev-add", overlay, never);
    const top = await this.topOf(node);
    await this.vm.hand.execute("blockdev-snapshot", { node: top, overlay: name }, never);
    this.#moveTo(node, path);
    this.#bases.set(node, { path: base, size: this.size(node) });
  }

  /** Whether the disk has an image over its first. */
  hasSnapshot(node: string): boolean {
    return this.#bases.has(node);
  }

  /** A commit would not make the lower image shorter, but bring back what it holds beyond (QMP reference, block-commit). */
  isShorterThanBase(node: string): boolean {
    return this.size(node) < this.#bases.get(node)!.size;
  }

  /** Writes the upper image into the lower, which takes the writes from now on. */
  async commitSnapshot(node: string): Promise<void> {
    const { hand } = this.vm;
    const device = await this.topOf(node);
    await hand.execute("block-commit", { "job-id": "commit", device }, never);
    const until = async (wanted: string | undefined): Promise<void> => {
      while ((await this.#jobStatus("commit")) !== wanted) await delay(5);
    };
    await until("ready");
    await hand.execute("block-job-complete", { device: "commit" }, never);
    await until(undefined);
    await hand.execute("blockdev-del", { "node-name": device }, never);
    this.#moveTo(node, this.#bases.get(node)!.path);
    this.#bases.delete(node);
  }

  /** Takes what the images hold for what the disks do. While no QEMU runs. */
  async reread(): Promise<void> {
    const copy = join(this.vm.scratchDir, "..", "reread.raw");
    for (const { node, path } of this.vm.disks) {
      await run("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", path, copy]);
      this.#content.set(node, await readFile(copy));
    }
  }

  /** A disk that the VM gets with its next boot. */
  add(node: string, size: number): void {
    this.#content.set(node, Buffer.alloc(size));
  }

  remove(node: string): void {
    this.#content.delete(node);
  }

  /** The node that the device writes to now. */
  async topOf(node: string): Promise<string> {
    const { disks } = await this.vm.survey();
    return disks.find(({ name }) => name === `dev-${node}`)!.node;
  }

  /** Runs a backup of the VM as "vm". */
  async backUp(
    repository: TestRepository,
    flags: readonly string[] = [],
    options: { readonly started?: (child: ChildProcess) => void; readonly under?: readonly string[] } = {},
  ): Promise<VmRun> {
    const { proxy, scratchDir } = this.vm;
    proxy.reset();
    const failures: Error[] = [];
    let filters = 0; // that are still to be put in, when the instant is not made by one transaction
    proxy.answered = async (command) => {
      const generation = generationBegun(command);
      if (generation !== undefined) {
        this.pictures.set(generation, this.picture());
        filters = filtersToCome(command);
      } else if (command.execute !== "qom-set" || --filters < 0) return;
      if (filters > 0) return;
      await this.atInstant().catch((error: unknown) => failures.push(error as Error));
    };
    const args = [`qmp:${proxy.path}`, "--name", "vm", "--scratch", scratchDir, ...flags];
    const run = await runVmBackup(repository, args, options);
    if (failures[0] !== undefined) throw failures[0]; // the proxy has nobody to tell
    return run;
  }

  /** As `backUp`. @throws Error unless it exits with 0. */
  async generation(repository: TestRepository, ...flags: string[]): Promise<VmGenerationJson> {
    return generationOf(await this.backUp(repository, flags));
  }

  /** @returns what differs between a generation as it is restored and the disks at its instant. */
  async differences(repository: TestRepository, { generation, disks }: VmGenerationJson): Promise<string[]> {
    const picture = this.pictures.get(generation);
    if (picture === undefined) return [`nobody saw the instant of ${generation}`];
    const folder = await mkdtemp(join(tmpdir(), "restored-"));
    try {
      const different: string[] = [];
      for (const { name } of disks) {
        const file = join(folder, `${name}.raw`);
        await repository.json("restore", generation, "--disk", name, "--to", file);
        if (hash("sha256", await readFile(file)) !== picture[name])
          different.push(`${name} of ${generation}`);
      }
      return different;
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  }

  picture(): Picture {
    const entries = [...this.#content].map(
      ([node, bytes]) => [`dev-${node}`, hash("sha256", bytes)] as const,
    );
    return Object.fromEntries(entries);
  }

  /** As `tracesIn`. */
  leftovers(): Promise<string[]> {
    return tracesIn(this.vm.hand, this.vm.scratchDir);
  }

  #moveTo(node: string, path: string): void {
    this.vm.disks = this.vm.disks.map((disk) => (disk.node === node ? { ...disk, path } : disk));
  }

  async #jobStatus(id: string): Promise<string | undefined> {
    return (await this.vm.survey()).jobs.find((job) => job.id === id)?.status;
  }

  async #io(node: string, command: string): Promise<void> {
    const device = `/machine/peripheral/dev-${node}/virtio-backend`;
    const line = `qemu-io -d ${device} "${command}"`;
    const answer = await this.vm.hand.execute("human-monitor-command", { "command-line": line }, never);
    if (answer !== "") throw new Error(`${line}: ${String(answer)}`);
  }
}

/** How many a run puts in after this transaction. */
function filtersToCome({ arguments: given }: ProxiedCommand): number {
  const actions = given!["actions"] as { type: string; data: { name?: string } }[];
  if (actions.some(({ type }) => type === "blockdev-backup")) return 0;
  return actions.filter(({ data }) => parseGenerationBitmap(data.name ?? "") !== undefined).length;
}
