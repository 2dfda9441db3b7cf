import { execFile, spawn, type ChildProcess } from "node:child_process";
import { chmod, chown, cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";

const run = promisify(execFile);

/** Who the daemon and its VMs run as: nobody, whom nothing on this machine belongs to. */
const NOBODY = 65534;

/** What the daemon finds out about QEMU takes it some seconds; it believes it as long as nothing of that has changed. */
const CAPABILITIES = resolve(import.meta.dirname, "../../.cache/libvirt-capabilities");
const QEMU_CACHE = "cache/libvirt/qemu/cache/capabilities";

/** The daemon begins by asking QEMU what it can. */
const READY_MS = 60_000;

/**
 * A libvirt of the tests' own: the daemon of an unprivileged user, with all its files in a folder of its own, so that nothing
 * of it is in /etc, /var or /run. The program under test reaches it as root, by its socket.
 */
export class Libvirt {
  /** With a short path: room for sockets. Removed by `stop`. */
  readonly folder: string;
  /** As `--connect` takes it. */
  readonly uri: string;
  readonly #daemon: ChildProcess;
  readonly #exited: Promise<unknown>;

  private constructor(folder: string, daemon: ChildProcess) {
    this.folder = folder;
    this.uri = `qemu:///session?socket=${folder}/run/libvirt/libvirt-sock`;
    this.#daemon = daemon;
    this.#exited = new Promise((done) => daemon.once("exit", done));
  }

  /** The caller stops it. @throws Error with what it said when it does not come up. */
  static async start(): Promise<Libvirt> {
    const folder = await mkdtemp(join(tmpdir(), "lv-"));
    const own = ["run", "config", "config/libvirt", "cache", "data"].map((name) => join(folder, name));
    for (const path of own) await mkdir(path, { mode: 0o700 });
    const settings = join(folder, "config/libvirt/qemu.conf");
    await writeFile(settings, 'stdio_handler = "file"\nsecurity_driver = "none"\n');
    if (existsSync(CAPABILITIES)) await cp(CAPABILITIES, join(folder, QEMU_CACHE), { recursive: true });
    await run("chown", ["-R", `${NOBODY}:${NOBODY}`, folder]);
    await chmod(folder, 0o755);
    const daemon = spawn(
      "setpriv",
      [...["--reuid", `${NOBODY}`, "--regid", `${NOBODY}`, "--clear-groups", "--"], "libvirtd"],
      {
        stdio: ["ignore", "ignore", "pipe"],
        cwd: folder,
        env: {
          PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
          HOME: folder,
          XDG_RUNTIME_DIR: own[0],
          XDG_CONFIG_HOME: own[1],
          XDG_CACHE_HOME: own[3],
          XDG_DATA_HOME: own[4],
          LC_ALL: "C",
        },
      },
    );
    let said = "";
    daemon.stderr.setEncoding("utf8").on("data", (text: string) => (said = (said + text).slice(-4000)));
    const libvirt = new Libvirt(folder, daemon);
    process.once("exit", libvirt.#endWithUs);
    try {
      const until = performance.now() + READY_MS;
      while (
        !(await libvirt.virsh("capabilities").then(
          () => true,
          () => false,
        ))
      ) {
        if (daemon.exitCode !== null || performance.now() > until) throw new Error(`no libvirtd: ${said}`);
        await delay(20);
      }
      if (!existsSync(CAPABILITIES)) await cp(join(folder, QEMU_CACHE), CAPABILITIES, { recursive: true });
      return libvirt;
    } catch (error) {
      await libvirt.stop();
      throw error;
    }
  }

  /** The system's own virsh. @throws with its words. */
  async virsh(...args: string[]): Promise<string> {
    const env = { ...process.env, LC_ALL: "C" };
    return (await run("/usr/bin/virsh", ["-q", "-c", this.uri, ...args], { env })).stdout;
  }

  /** Ends all its domains, then itself, and removes the folder. */
  async stop(): Promise<void> {
    process.removeListener("exit", this.#endWithUs);
    for (const pid of await this.#qemus()) await endProcess(pid);
    this.#daemon.kill("SIGKILL");
    if (this.#daemon.exitCode === null && this.#daemon.signalCode === null) await this.#exited;
    await rm(this.folder, { recursive: true, force: true });
  }

  readonly #endWithUs = (): void => void this.#daemon.kill("SIGKILL");

  async #qemus(): Promise<number[]> {
    const folder = join(this.folder, "run/libvirt/qemu/run");
    const names = (await readdir(folder).catch(() => [])).filter((name) => name.endsWith(".pid"));
    return await Promise.all(names.map(async (name) => Number(await readFile(join(folder, name), "utf8"))));
  }
}

export async function endProcess(pid: number): Promise<void> {
  const isThere = (): boolean => {
    try {
      return process.kill(pid, 0);
    } catch {
      return false;
    }
  };
  if (isThere()) process.kill(pid, "SIGKILL");
  while (isThere()) await delay(5);
}

/** Whom the daemon lets have a path. */
export async function giveAway(path: string): Promise<void> {
  await chown(path, NOBODY, NOBODY);
}
