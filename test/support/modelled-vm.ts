import type { ChildProcess } from "node:child_process";
import { hash } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BackedUpVm, type TestDisk } from "./backed-up-vm.ts";
import type { TestRepository } from "./repositories.ts";
import { tracesIn } from "./traces.ts";
import { generationBegun, generationOf, runVmBackup, type VmGenerationJson, type VmRun } from "./vm-runs.ts";

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
    proxy.answered = async (command) => {
      const generation = generationBegun(command);
      if (generation === undefined) return;
      this.pictures.set(generation, this.picture());
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

  async #io(node: string, command: string): Promise<void> {
    const device = `/machine/peripheral/dev-${node}/virtio-backend`;
    const line = `qemu-io -d ${device} "${command}"`;
    const answer = await this.vm.hand.execute("human-monitor-command", { "command-line": line }, never);
    if (answer !== "") throw new Error(`${line}: ${String(answer)}`);
  }
}
