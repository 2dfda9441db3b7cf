import { copyFile, mkdir, mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { ChildProcess } from "node:child_process";
import { createQcow2, qemuImg } from "./exported-images.ts";
import { guardsAmong, guardsOf } from "./guards.ts";
import { compareFiles } from "./images.ts";
import { endProcess, giveAway, type Libvirt } from "./libvirt.ts";
import { programFor, type TestRepository } from "./repositories.ts";
import { generationOf, runVmBackup, type VmGenerationJson, type VmRun } from "./vm-runs.ts";

export interface DomainDisk {
  /** Its target: "vda". */
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  readonly format?: "qcow2" | "raw";
}

/**
 * Stands between the program and virsh: before or after a command it does what the file of that name says, once. The
 * file is read by the same shell, whose parent is who called virsh.
 */
const WRAPPER = `#!/bin/sh
step() { [ ! -e "$STEPS/$1" ] || { mv "$STEPS/$1" "$STEPS/.now"; . "$STEPS/.now"; }; }
echo "$3" >>"$STEPS/.log"
step "before $3"
/usr/bin/virsh "$@"
code=$?
step "after $3"
exit $code
`;

/**
 * A domain without a guest, whose CPU stands still, and a repository that it is backed up to: what is written, tests
 * write through its devices as a guest would.
 */
export class TestDomain {
  readonly name: string;
  readonly folder: string;
  readonly scratch: string;
  readonly repository: TestRepository;
  /** By the disk's name. */
  readonly images = new Map<string, string>();
  readonly #libvirt: Libvirt;
  readonly #steps: string;
  #holds = 0;

  private constructor(libvirt: Libvirt, name: string, folder: string) {
    this.#libvirt = libvirt;
    this.name = name;
    this.folder = folder;
    this.scratch = join(folder, "scratch");
    this.#steps = join(folder, "steps");
    this.repository = this.newRepository("repository");
  }

  /** The libvirt takes it with it. */
  static async start(libvirt: Libvirt, name: string, disks: readonly DomainDisk[]): Promise<TestDomain> {
    const domain = await TestDomain.of(libvirt, name, await mkdtemp(join(libvirt.folder, "d-")));
    for (const disk of disks) await domain.makeImage(disk);
    await domain.define(disks);
    await domain.start();
    return domain;
  }

  /** One that is there. @param folder of its own. */
  static async of(libvirt: Libvirt, name: string, folder: string): Promise<TestDomain> {
    const domain = new TestDomain(libvirt, name, folder);
    for (const path of [domain.scratch, join(folder, "bin"), domain.#steps]) await mkdir(path);
    await writeFile(join(folder, "bin/virsh"), WRAPPER, { mode: 0o755 });
    for (const path of [folder, domain.scratch]) await giveAway(path);
    await domain.repository.run("init");
    return domain;
  }

  /** Another one beside its own. The program finds the wrapper before virsh. */
  newRepository(name: string): TestRepository {
    return programFor(join(this.folder, name), {
      BLOCKHAUL_CACHE_DIR: join(this.folder, "cache"),
      PATH: `${join(this.folder, "bin")}:${process.env["PATH"]}`,
      STEPS: this.#steps,
    });
  }

  virsh(...args: string[]): Promise<string> {
    return this.#libvirt.virsh(...args);
  }

  async makeImage({ name, size, format = "qcow2" }: DomainDisk): Promise<string> {
    const path = join(this.folder, `${name}.${format}`);
    if (format === "qcow2") await createQcow2(path, size);
    else await qemuImg("create", "-q", "-f", "raw", path, `${size}`);
    await giveAway(path);
    this.images.set(name, path);
    return path;
  }

  /** While it is off, or as a new definition for its next start. */
  async define(disks: readonly Pick<DomainDisk, "name" | "format">[]): Promise<void> {
    const uuid = (await this.virsh("domuuid", this.name).catch(() => "")).trim();
    const port = "<controller type='pci' model='pcie-root-port'/>";
    await this.#withFile(
      `<domain type='qemu'><name>${this.name}</name>${uuid && `<uuid>${uuid}</uuid>`}
        <memory unit='MiB'>32</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>
        <devices><controller type='pci' index='0' model='pcie-root'/>${port.repeat(6)}
        ${disks.map((disk) => this.#diskXml(disk)).join("")}
        <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
        <memballoon model='none'/></devices></domain>`,
      (path) => this.virsh("define", path),
    );
  }

  /** While it runs. */
  async attach(disk: DomainDisk): Promise<void> {
    await this.makeImage(disk);
    await this.#withFile(this.#diskXml(disk), (path) =>
      this.virsh("attach-device", this.name, path, "--live"),
    );
  }

  async start(): Promise<void> {
    await this.virsh("start", this.name, "--paused");
  }

  /** As a crash of the host would end it. */
  async crash(): Promise<void> {
    const pid = Number(
      await readFile(join(this.#libvirt.folder, `run/libvirt/qemu/run/${this.name}.pid`), "utf8"),
    );
    await endProcess(pid);
    while (!(await this.virsh("domstate", this.name)).includes("shut off")) await delay(20);
  }

  /** Each command is one of qemu-io's: "write -P 1 0 8M", "write -z 1M 64k", "discard 2M 1M". */
  async write(disk: string, ...commands: string[]): Promise<void> {
    const { alias } = await this.#deviceOf(disk);
    for (const command of [...commands, "flush"]) {
      const line = `qemu-io -d /machine/peripheral/${alias}/virtio-backend "${command}"`;
      await this.virsh("qemu-monitor-command", this.name, "--hmp", line);
    }
  }

  /** What each disk holds now, as raw files: what a restore must give. */
  async truth(): Promise<Map<string, string>> {
    const folder = await mkdtemp(join(this.folder, "truth-"));
    const truths = new Map<string, string>();
    for (const line of (await this.virsh("domblklist", this.name)).trim().split("\n")) {
      const [name, image] = line.trim().split(/\s+/) as [string, string];
      const truth = join(folder, name);
      if (image.endsWith(".raw")) await copyFile(image, truth);
      else await qemuImg("convert", "-U", "-f", "qcow2", "-O", "raw", image, truth);
      truths.set(name, truth);
    }
    return truths;
  }

  async backUp(...flags: string[]): Promise<VmRun> {
    return await this.backUpTo(this.repository, flags);
  }

  async backUpTo(
    repository: TestRepository,
    flags: readonly string[] = [],
    started?: (child: ChildProcess) => void,
  ): Promise<VmRun> {
    const common = [`libvirt:${this.name}`, "--connect", this.#libvirt.uri, "--scratch", this.scratch];
    return await runVmBackup(repository, [...common, ...flags], started === undefined ? {} : { started });
  }

  /** @throws Error unless it exits with 0. */
  async generation(...flags: string[]): Promise<VmGenerationJson> {
    return generationOf(await this.backUp(...flags));
  }

  /** What differs between a restore of the generation and what the disks held. */
  async differences(
    { generation, disks }: VmGenerationJson,
    truth: ReadonlyMap<string, string>,
    repository = this.repository,
  ): Promise<string[]> {
    const folder = await mkdtemp(join(this.folder, "restored-"));
    const found = await Promise.all(
      disks.map(async ({ name }) => {
        const file = join(folder, name);
        const { code, stderr } = await repository.run("restore", generation, "--disk", name, "--to", file);
        const differs = code === 0 ? await compareFiles(file, truth.get(name)!) : stderr;
        return differs === undefined ? [] : `${name}: ${differs}`;
      }),
    );
    return found.flat();
  }

  /** The script is run by virsh's caller's shell, once. `$PPID` is who called. @param when "after backup-begin" */
  async at(when: string, script: string): Promise<void> {
    await writeFile(join(this.#steps, when), script);
  }

  /** As `at`, when these steps have come one after the other. */
  async atLast(steps: readonly string[], script: string): Promise<void> {
    for (const [index, step] of steps.entries()) {
      const next = steps[index + 1];
      const text = next === undefined ? script : `mv "$STEPS/.chain${index + 1}" "$STEPS/${next}"`;
      await this.at(index === 0 ? step : `.chain${index}`, text);
    }
  }

  /** A run waits at the step while this is done. To be awaited beside the run. */
  async meanwhile(when: string, act: () => Promise<unknown>): Promise<void> {
    const number = ++this.#holds;
    const [reached, go] = [join(this.#steps, `reached${number}`), join(this.#steps, `go${number}`)];
    await this.at(
      when,
      `: >"${reached}"; while [ ! -e "${go}" ]; do sleep 0.02; done; rm "${reached}" "${go}"`,
    );
    while (!(await readdir(this.#steps)).includes(`reached${number}`)) await delay(10);
    await act().finally(() => writeFile(go, ""));
  }

  /** The commands that virsh was called with. */
  async calls(): Promise<string[]> {
    return (await readFile(join(this.#steps, ".log"), "utf8")).trim().split("\n");
  }

  /** A run that dies by SIGKILL at a step, as a host's OOM killer would end it; its guard is awaited. */
  async killedAt(when: string, { guarded }: { readonly guarded: boolean }): Promise<VmRun> {
    let child!: ChildProcess;
    const reached = join(this.#steps, "last");
    await this.at(
      when,
      `: >"${reached}"; while kill -0 $PPID 2>/dev/null; do sleep 0.02; done; rm "${reached}"`,
    );
    const ended = this.backUpTo(this.repository, [], (started) => (child = started));
    while (!(await readdir(this.#steps)).includes("last")) await delay(10);
    const guards = await guardsOf(child.pid!);
    if (!guarded) for (const pid of guards) process.kill(pid, "SIGKILL");
    child.kill("SIGKILL");
    const result = await ended;
    while ((await guardsAmong(guards)).length > 0) await delay(20);
    return result;
  }

  /** A backup job that is none of ours. */
  async othersBackup(): Promise<void> {
    const { folder } = this;
    await this.#withFile(
      `<domainbackup mode='pull'><server transport='unix' socket='${folder}/other.sock'/><disks>
        <disk name='vda' backup='yes' type='file'><scratch file='${folder}/other.scratch'/></disk></disks></domainbackup>`,
      (path) => this.virsh("backup-begin", this.name, path),
    );
  }

  async checkpoints(): Promise<string[]> {
    return (await this.virsh("checkpoint-list", this.name, "--name")).split("\n").filter(Boolean);
  }

  /** Nothing of a run is left: no job, no file. */
  async leftovers(): Promise<string[]> {
    const job = await this.virsh("domjobinfo", this.name);
    const files = await readdir(this.scratch);
    return [...(/None/.test(job) || job.trim() === "" ? [] : [job.trim()]), ...files];
  }

  async #deviceOf(disk: string): Promise<{ alias: string }> {
    const xml = await this.virsh("dumpxml", this.name);
    const device = xml.split("<disk ").find((part) => part.includes(`<target dev='${disk}'`));
    const alias = /<alias name='([^']+)'/.exec(device ?? "")?.[1];
    if (alias === undefined) throw new Error(`no disk ${disk}`);
    return { alias };
  }

  #diskXml({ name, format = "qcow2" }: Pick<DomainDisk, "name" | "format">): string {
    return `<disk type='file' device='disk'><driver name='qemu' type='${format}' discard='unmap'/>
      <source file='${this.images.get(name)}'/><target dev='${name}' bus='virtio'/></disk>`;
  }

  async #withFile<T>(text: string, work: (path: string) => Promise<T>): Promise<T> {
    const path = join(this.folder, "given.xml");
    await writeFile(path, text);
    return await work(path).finally(() => rm(path));
  }
}
