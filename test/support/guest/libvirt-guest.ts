import { copyFile, mkdtemp, readFile, writeFile } from "node:fs/promises";
import { createConnection } from "node:net";
import { join, resolve } from "node:path";
import { giveAway, type Libvirt } from "../libvirt.ts";
import { GuestConsole } from "./console.ts";
import { makeDisk } from "./disk.ts";

const CACHE = resolve(import.meta.dirname, "../../../.cache/guest");
const BOOT_MS = 45_000;
const DISK_SIZE = 64 * 1024 * 1024;

/** The guest of `guest.ts` as a domain of libvirt, with one disk, its writer writing. Libvirt takes it with it. */
export interface LibvirtGuest {
  readonly name: string;
  /** That everything of the domain is in. */
  readonly folder: string;
  readonly disk: string;
  readonly console: GuestConsole;
}

export async function startLibvirtGuest(libvirt: Libvirt): Promise<LibvirtGuest> {
  const name = "guest";
  const folder = await mkdtemp(join(libvirt.folder, "g-"));
  const at = (file: string): string => join(folder, file);
  for (const file of ["vmlinuz", "initrd.gz"]) await copyFile(join(CACHE, file), at(file));
  const disk = await makeDisk(at("disk.qcow2"), DISK_SIZE);
  for (const path of [folder, disk]) await giveAway(path);
  const serial = (port: number): string =>
    `<serial type='unix'><source mode='bind' path='${at(`ttyS${port}`)}'/><target port='${port}'/></serial>`;
  await writeFile(
    at("domain.xml"),
    `<domain type='qemu'><name>${name}</name><memory unit='MiB'>384</memory><vcpu>1</vcpu>
      <os><type arch='x86_64' machine='q35'>hvm</type><kernel>${at("vmlinuz")}</kernel><initrd>${at("initrd.gz")}</initrd>
        <cmdline>console=ttyS0 quiet panic=-1 cryptomgr.notests writer=1</cmdline></os>
      <features><acpi/></features><cpu mode='maximum'/>
      <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>
        <source file='${disk}'/><target dev='vda' bus='virtio'/></disk>
      ${serial(0)}${serial(1)}
      <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
      <memballoon model='none'/></devices></domain>`,
  );
  await libvirt.virsh("define", at("domain.xml"));
  await libvirt.virsh("start", name);
  const log = createConnection(at("ttyS0"));
  const ended = new Promise((done) => log.once("close", done));
  log.on("error", () => undefined);
  const console = new GuestConsole(log, at("ttyS1"), ended);
  try {
    await console.waitFor(/GUEST: READY/, BOOT_MS);
    await console.connect();
  } catch (error) {
    const said = await readFile(join(libvirt.folder, `cache/libvirt/qemu/log/${name}.log`), "utf8");
    throw new Error(`the guest did not come up: ${said.slice(-1500)}${console.log.slice(-1500)}`, {
      cause: error,
    });
  }
  return { name, folder, disk, console };
}
