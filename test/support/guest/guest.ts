import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { onTestFinished } from "vitest";
import { GuestConsole } from "./console.ts";
import { QEMU_10 } from "../qemu-vm.ts";
import { makeDisk } from "./disk.ts";

const CACHE = resolve(import.meta.dirname, "../../../.cache");
/** Three seconds on an idle machine; all of this when other tests keep its cores busy. */
const BOOT_MS = 45_000;
const POWER_OFF_MS = 20_000;

export interface GuestOptions {
  /** The machine's own QEMU, or the newer one that test/support/install.sh fetches. */
  readonly qemu?: "system" | "10";
  /** How many new disks, each a qcow2 image with ext4 and `/seq`; 1 unless told. Not with `images`. */
  readonly disks?: 1 | 2;
  /** Of a new disk, bytes. */
  readonly diskSize?: number;
  /** Existing qcow2 images to boot with, as after a restart. They are left where they are. */
  readonly images?: readonly string[];
  /** Each disk gets an iothread of its own. */
  readonly iothread?: boolean;
  /** Starts the writer at boot: see root/bin/writer. */
  readonly writer?: boolean;
  /** More of QEMU's arguments, after ours. */
  readonly args?: readonly string[];
}

/** How QEMU ended. */
export interface QemuExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** The end of what it said. */
  readonly stderr: string;
}

/**
 * A running guest. Its disks are the nodes `drive0` and `drive1`, devices `vd0` and `vd1`, mounted on `/mnt` and `/mnt2`;
 * the files beneath are the nodes `file0` and `file1`.
 */
export interface Guest {
  /** A folder of its own, with a short path: room for sockets. Removed by `close`. */
  readonly folder: string;
  /** Socket of the monitor; it serves one client, and nobody is connected. */
  readonly qmp: string;
  /** Socket of the guest agent; it serves one client, and nobody is connected. */
  readonly agent: string;
  /** The images, in order. */
  readonly disks: readonly string[];
  readonly pid: number;
  readonly console: GuestConsole;
  /** Settles when QEMU has ended; never rejects. */
  readonly exited: Promise<QemuExit>;
  /** Ends the guest in order: file systems unmounted, images closed. Not while it is frozen or paused. */
  powerOff(): Promise<void>;
  /** Ends QEMU by SIGTERM: it closes its images in order, the guest gets no say. */
  stop(): Promise<void>;
  /** Ends QEMU by SIGKILL, as a crash of the host would. */
  kill(): Promise<void>;
  /** Kills what still runs and removes the folder. Safe to call twice. */
  close(): Promise<void>;
}

/**
 * Boots a guest for the test that runs, and closes it when that ends. Takes about three seconds.
 *
 * @throws Error with what QEMU and the guest said, when it does not come up.
 */
export async function bootGuest(options: GuestOptions = {}): Promise<Guest> {
  const starting = startGuest(options);
  // before it is up: a test that runs out of time meanwhile leaves nothing behind either
  onTestFinished(() =>
    starting.then(
      (guest) => guest.close(),
      () => undefined,
    ),
  );
  return await starting;
}

/** As `bootGuest`, for `beforeAll`: the caller closes it. */
export async function startGuest(options: GuestOptions = {}): Promise<Guest> {
  const folder = await mkdtemp(join(tmpdir(), "guest-"));
  try {
    return await launch(folder, options, options.images ?? (await newDisks(folder, options)));
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    throw error;
  }
}

function newDisks(folder: string, options: GuestOptions): Promise<string[]> {
  const size = options.diskSize ?? 128 * 1024 * 1024;
  const paths = [join(folder, "disk0.qcow2"), join(folder, "disk1.qcow2")].slice(0, options.disks ?? 1);
  return Promise.all(paths.map((path) => makeDisk(path, size)));
}

async function launch(folder: string, options: GuestOptions, disks: readonly string[]): Promise<Guest> {
  const program = options.qemu === "10" ? QEMU_10 : "qemu-system-x86_64";
  const child = spawn(program, commandLine(folder, options, disks), { stdio: ["ignore", "pipe", "pipe"] });
  const endWithUs = (): void => void child.kill("SIGKILL");
  process.once("exit", endWithUs);
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr = (stderr + text).slice(-4000)));
  const exited = new Promise<QemuExit>((done) => {
    child.once("error", (error) => done({ code: null, signal: null, stderr: error.message }));
    child.once("close", (code, signal) => done({ code, signal, stderr }));
  }).finally(() => process.removeListener("exit", endWithUs));

  const console = new GuestConsole(child.stdout, join(folder, "console.sock"), exited);
  const end = async (signal: NodeJS.Signals): Promise<void> => {
    child.kill(signal);
    await exited;
  };
  const close = async (): Promise<void> => {
    await end("SIGKILL");
    console.close();
    await rm(folder, { recursive: true, force: true });
  };
  try {
    await console.waitFor(/GUEST: READY/, BOOT_MS);
    await console.connect();
  } catch (error) {
    await close();
    const said = `${stderr}${console.log.slice(-2000)}`;
    throw new Error(`the guest did not come up (has test/support/install.sh run?): ${said}`, {
      cause: error,
    });
  }
  return {
    folder,
    qmp: join(folder, "qmp.sock"),
    agent: join(folder, "agent.sock"),
    disks,
    pid: child.pid!,
    console,
    exited,
    powerOff: async () => {
      await console.run("setsid power-off >/dev/console 2>&1 &");
      const inTime = await Promise.race([exited, delay(POWER_OFF_MS, undefined, { ref: false })]);
      if (inTime === undefined)
        throw new Error(`no power-off in ${POWER_OFF_MS} ms: ${console.log.slice(-500)}`);
    },
    stop: () => end("SIGTERM"),
    kill: () => end("SIGKILL"),
    close,
  };
}

function commandLine(folder: string, options: GuestOptions, disks: readonly string[]): string[] {
  const guest = join(CACHE, "guest");
  const socket = (id: string, name: string): string[] => [
    "-chardev",
    `socket,id=${id},path=${join(folder, name)},server=on,wait=off`,
  ];
  return [
    ..."-name guest -accel tcg -cpu max -M q35 -m 384 -smp 1".split(" "),
    ..."-nodefaults -no-user-config -display none -no-reboot".split(" "),
    ...["-kernel", join(guest, "vmlinuz"), "-initrd", join(guest, "initrd.gz")],
    // the kernel's tests of its own ciphers take a fifth of the boot
    ...["-append", `console=ttyS0 quiet panic=-1 cryptomgr.notests writer=${options.writer ? 1 : 0}`],
    ...["-chardev", "stdio,id=log,signal=off", "-serial", "chardev:log"],
    ...[...socket("console", "console.sock"), "-serial", "chardev:console"],
    ...["-qmp", `unix:${join(folder, "qmp.sock")},server=on,wait=off`],
    ...[...socket("qga0", "agent.sock"), "-device", "virtio-serial-pci,id=vs0"],
    ...["-device", "virtserialport,bus=vs0.0,chardev=qga0,name=org.qemu.guest_agent.0"],
    ...disks.flatMap((path, number) => [
      ...(options.iothread ? ["-object", `iothread,id=io${number}`] : []),
      ...["-blockdev", JSON.stringify({ "node-name": `file${number}`, driver: "file", filename: path })],
      ...["-blockdev", `node-name=drive${number},driver=qcow2,file=file${number},discard=unmap`],
      "-device",
      `virtio-blk-pci,id=vd${number},drive=drive${number}${options.iothread ? `,iothread=io${number}` : ""}`,
    ]),
    ...(options.args ?? []),
  ];
}
