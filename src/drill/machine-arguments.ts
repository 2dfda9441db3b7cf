import { MiB } from "../bytes/size.ts";
import type { Accelerator } from "./accelerator.ts";

/** A virtual machine for the time of a drill. */
export interface MachineWish {
  /** QEMU: a path, or a name to be found. */
  readonly qemu: string;
  readonly accelerator: Accelerator;
  /** Bytes. */
  readonly memory: number;
  readonly cpus: number;
  /** More of QEMU's arguments, after ours. */
  readonly more: readonly string[];
}

/** Where what the machine needs is. */
export interface MachinePlace {
  /** A socket of NBD, with each disk exported under its name. */
  readonly nbd: string;
  /** In the order in which the machine has them. */
  readonly disks: readonly string[];
  /** Where QEMU makes the guest agent's socket. */
  readonly agent: string;
}

/** virtio-blk knows the first 20 bytes (virtio 1.2, 5.2.6). */
const SERIAL_MAX = 20;

/**
 * QEMU's command line. The guest has no network, and a serial console that firmware and boot loaders speak on too. A
 * restart ends it. What it flushes goes no further: nothing of it is to stay.
 */
export function machineArguments(wish: MachineWish, { nbd, disks, agent }: MachinePlace): string[] {
  const { accelerator, memory, cpus, more } = wish;
  return [
    ...["-name", "blockhaul-drill", "-nodefaults", "-no-user-config"],
    ...["-machine", "q35,graphics=off", "-accel", accelerator],
    ...["-cpu", accelerator === "kvm" ? "host" : "max"],
    ...["-m", `${Math.ceil(memory / MiB)}M`, "-smp", String(cpus)],
    ...["-display", "none", "-vga", "std", "-nic", "none", "-no-reboot"],
    ...["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"],
    ...["-chardev", `socket,id=agent,path=${escaped(agent)},server=on,wait=off`],
    ...["-device", "virtio-serial-pci,id=serial"],
    ...["-device", "virtserialport,bus=serial.0,chardev=agent,name=org.qemu.guest_agent.0"],
    ...["-device", "virtio-rng-pci"],
    ...disks.flatMap((disk, number) => diskArguments(disk, number, nbd)),
    ...more,
  ];
}

function diskArguments(disk: string, number: number, nbd: string): string[] {
  const node = `drill${number}`;
  const blockdev = {
    driver: "nbd",
    "node-name": node,
    server: { type: "unix", path: nbd },
    export: disk,
    discard: "unmap",
    cache: { "no-flush": true },
  };
  const device = {
    driver: "virtio-blk-pci",
    drive: node,
    serial: disk.slice(0, SERIAL_MAX),
  };
  return ["-blockdev", JSON.stringify(blockdev), "-device", JSON.stringify(device)];
}

/** A comma ends a value. */
function escaped(value: string): string {
  return value.replaceAll(",", ",,");
}
