import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { hasCode } from "../../src/errors.ts";
import { QmpClient } from "../../src/qemu/qmp/client.ts";

/** Another QEMU than the system's: its path. */
export const QEMU = process.env["BLOCKHAUL_TEST_QEMU"] ?? "qemu-system-x86_64";

/** The newer QEMU that test/support/install.sh fetches. */
export const QEMU_10 = resolve(import.meta.dirname, "../../.cache/bin/qemu-system-x86_64-10");

const never = new AbortController().signal;

export interface QemuVmDisk {
  /** Of its block node; the device is called `dev-NODE`. */
  readonly node: string;
  readonly path: string;
  /** qcow2 unless said otherwise. */
  readonly format?: "qcow2" | "raw";
}

export interface QemuVmOptions {
  /** Each is a -blockdev with a virtio-blk-pci device. */
  readonly disks?: readonly QemuVmDisk[];
  /** More arguments; the folder is the VM's own. */
  readonly args?: (folder: string) => readonly string[];
  /** In place of `QEMU`. */
  readonly program?: string;
  /** In place of `pc`, or of `none` when there are no disks. */
  readonly machine?: string;
}

/** A real QEMU whose CPU never runs: there is no guest in it. */
export interface QemuVm {
  /** Path of its monitor's socket. Nobody is connected. */
  readonly qmp: string;
  readonly folder: string;
  readonly pid: number;
  /** Its exit code, or the signal that ended it. */
  readonly exited: Promise<number | NodeJS.Signals>;
  /** Ends it as a crash would and removes its folder. Safe to call twice. */
  stop(): Promise<void>;
}

/**
 * Starts QEMU with a monitor on a private socket and waits until the monitor greets.
 *
 * @throws Error with what it said when it ends before.
 */
export async function startQemuVm(options: QemuVmOptions = {}): Promise<QemuVm> {
  const folder = await mkdtemp(join(tmpdir(), "qemu-vm-"));
  const qmp = join(folder, "qmp.sock");
  const disks = options.disks ?? [];
  const machine = options.machine ?? (disks.length === 0 ? "none" : "pc");
  const program = options.program ?? QEMU;
  const child = spawn(
    program,
    [
      ...["-machine", machine, "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none", "-S"],
      ...["-qmp", `unix:${qmp},server=on,wait=off`],
      ...disks.flatMap(diskArguments),
      ...(options.args?.(folder) ?? []),
    ],
    { stdio: ["ignore", "ignore", "pipe"] },
  );
  let said = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (said = (said + text).slice(-4000)));
  const exited = new Promise<number | NodeJS.Signals>((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", (code, signal) => resolve(code ?? signal!));
  });
  exited.catch(() => undefined); // whoever waits hears it
  const endWithUs = (): void => void child.kill("SIGKILL");
  process.once("exit", endWithUs);
  const stop = async (): Promise<void> => {
    process.removeListener("exit", endWithUs);
    child.kill("SIGKILL");
    await exited;
    await rm(folder, { recursive: true, force: true });
  };
  try {
    await Promise.race([
      greets(qmp),
      exited.then((how) => Promise.reject(new Error(`${program} ended with ${how}: ${said}`))),
    ]);
  } catch (error) {
    await stop().catch(() => undefined);
    throw error;
  }
  return { qmp, folder, pid: child.pid!, exited, stop };
}

/**
 * Writes through the disk's device, as its guest would: into `length` bytes from `offset` on, each of this value.
 *
 * @param node the disk's, as given to `startQemuVm`.
 */
export async function writeAsGuest(
  client: QmpClient,
  node: string,
  range: { readonly offset: number; readonly length: number; readonly byte: number },
): Promise<void> {
  const { offset, length, byte } = range;
  const device = `/machine/peripheral/dev-${node}/virtio-backend`;
  const line = `qemu-io -d ${device} "write -P ${byte} ${offset} ${length}"`;
  const answer = await client.execute("human-monitor-command", { "command-line": line }, never);
  if (answer !== "") throw new Error(`${line}: ${String(answer)}`);
}

function diskArguments({ node, path, format = "qcow2" }: QemuVmDisk): string[] {
  const blockdev = {
    driver: format,
    "node-name": node,
    discard: "unmap",
    file: { driver: "file", filename: path, discard: "unmap" },
  };
  return ["-blockdev", JSON.stringify(blockdev), "-device", `virtio-blk-pci,drive=${node},id=dev-${node}`];
}

async function greets(qmp: string): Promise<void> {
  for (;;) {
    try {
      const client = await QmpClient.connect(qmp, never);
      await client.close();
      return;
    } catch (error) {
      if (!hasCode(error, "E_QMP_CONNECT")) throw error;
      await delay(5);
    }
  }
}
