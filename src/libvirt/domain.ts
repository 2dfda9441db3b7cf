import { AppError, hasCode } from "../errors.ts";
import { attributeOf, childOf, childrenOf, parseXml, textOf, type Element } from "./xml.ts";
import { isLocal, Virsh } from "./virsh.ts";

/** A disk of a running domain. */
export interface DomainDisk {
  /** Its target: "vda". */
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** Of the image: qcow2, raw. */
  readonly format: string;
  readonly readOnly: boolean;
  /** Served in a thread of its own in QEMU. */
  readonly iothread: boolean;
  /** Where its image is, in one line; that of each image it stands on after it. */
  readonly images: readonly string[];
}

export interface Domain {
  readonly name: string;
  readonly uuid: string;
  /** The guest can have an agent: there is a channel for it. */
  readonly agentChannel: boolean;
  readonly agentConnected: boolean;
  readonly disks: readonly DomainDisk[];
}

/** What libvirt says of a domain's state: "running", and why: "booted". */
export interface DomainState {
  readonly state: string;
  readonly why: string;
}

const AGENT_CHANNEL = "org.qemu.guest_agent.0";

/** A domain of a libvirt on this machine, by its UUID, so that it may be given another name meanwhile. */
export class DomainHandle {
  readonly virsh: Virsh;
  /** As people know it. */
  readonly name: string;
  readonly uuid: string;

  /** As known from `find`. */
  constructor(virsh: Virsh, name: string, uuid: string) {
    this.virsh = virsh;
    this.name = name;
    this.uuid = uuid;
  }

  /**
   * @param uri of the connection; undefined: libvirt's own choice.
   * @throws AppError E_LIBVIRT_REMOTE (usage), E_DOMAIN_UNKNOWN (notFound), as `Virsh.run`.
   */
  static async find(uri: string | undefined, name: string, signal: AbortSignal): Promise<DomainHandle> {
    const virsh = new Virsh(uri);
    const found = (await virsh.run("uri", [], { signal })).trim();
    if (!isLocal(found)) {
      const message =
        `The libvirt at ${withoutUser(found)} is on another machine, whose NBD sockets cannot be reached from here; ` +
        "run Blockhaul there";
      throw new AppError("usage", "E_LIBVIRT_REMOTE", message);
    }
    const uuid = (await virsh.run("domuuid", ["--domain", name], { signal })).trim();
    return new DomainHandle(new Virsh(found), name, uuid);
  }

  /** A virsh command on the domain. @throws as `Virsh.run`. */
  async ask(command: string, args: readonly string[], signal: AbortSignal): Promise<string> {
    return await this.virsh.run(command, ["--domain", this.uuid, ...args], { signal });
  }

  /** As `ask`, of a command that changes something, which goes on without us: so it is waited for. */
  async change(command: string, args: readonly string[] = []): Promise<string> {
    return await this.virsh.run(command, ["--domain", this.uuid, ...args]);
  }

  /** Of a domain that libvirt knows no more: "gone". @throws as `Virsh.run`. */
  async state(signal: AbortSignal): Promise<DomainState> {
    const text = await this.ask("domstate", ["--reason"], signal).catch((error: unknown) => {
      if (hasCode(error, "E_DOMAIN_UNKNOWN")) return "gone";
      throw error;
    });
    const match = /^(.*?)(?: \((.*)\))?$/.exec(text.trim());
    return { state: match?.[1] ?? "", why: match?.[2] ?? "" };
  }

  /**
   * Version of the QEMU that libvirt starts domains with: that of a domain is told only over its monitor, which libvirt
   * has to itself.
   */
  async qemuVersion(signal: AbortSignal): Promise<{ readonly major: number; readonly minor: number }> {
    const said = await this.virsh.run("version", [], { signal });
    const match = /^Running hypervisor: QEMU (\d+)\.(\d+)/m.exec(said);
    return { major: Number(match?.[1] ?? 0), minor: Number(match?.[2] ?? 0) };
  }

  /** Its disks as they are now. @throws AppError E_DOMAIN_OFF (source); as `Virsh.run`. */
  async survey(signal: AbortSignal): Promise<Domain> {
    const [{ state }, description, stats] = await Promise.all([
      this.state(signal),
      this.ask("dumpxml", [], signal),
      this.virsh.run("domstats", ["--raw", "--block", this.uuid], { signal }),
    ]);
    if (state !== "running" && state !== "paused") {
      const message =
        `Domain ${this.name} is not running (${state}), and libvirt backs up only what runs; ` +
        "of a domain that is off, back up the images of its disks";
      throw new AppError("source", "E_DOMAIN_OFF", message, { domain: this.name, state });
    }
    const xml = parseXml(description, "domain");
    const sizes = sizesIn(stats);
    const channel = childrenOf(childOf(xml, "devices"), "channel")
      .map((one) => childOf(one, "target"))
      .find((target) => attributeOf(target, "name") === AGENT_CHANNEL);
    return {
      name: textOf(childOf(xml, "name")),
      uuid: this.uuid,
      agentChannel: channel !== undefined,
      agentConnected: attributeOf(channel, "state") === "connected",
      disks: disksIn(xml, sizes),
    };
  }
}

/** Disks whose images libvirt may find again: CD-ROMs, floppies and what has no image are none. */
function disksIn(domain: Element, sizes: ReadonlyMap<string, number>): DomainDisk[] {
  return childrenOf(childOf(domain, "devices"), "disk").flatMap((disk) => {
    const name = attributeOf(childOf(disk, "target"), "dev");
    const size = name === undefined ? undefined : sizes.get(name);
    const images = imagesOf(disk);
    const kind = attributeOf(disk, "device") ?? "disk";
    if (name === undefined || size === undefined || images.length === 0 || kind !== "disk") return [];
    const driver = childOf(disk, "driver");
    const format = attributeOf(driver, "type") ?? "raw";
    const iothread = attributeOf(driver, "iothread") ?? childOf(driver, "iothreads");
    const readOnly = childOf(disk, "readonly") !== undefined;
    return { name, size, format, readOnly, iothread: iothread !== undefined, images };
  });
}

/** The image of a disk in a domain's description and those below it, as far as the description tells. */
export function imagesOf(disk: Element): string[] {
  const images: string[] = [];
  for (let at: Element | undefined = disk; at !== undefined; at = childOf(at, "backingStore")) {
    const source = childOf(at, "source");
    if (source === undefined) break;
    const keys = ["file", "dev", "dir", "protocol", "name", "pool", "volume"];
    images.push(keys.flatMap((key) => attributeOf(source, key) ?? []).join(" "));
  }
  return images;
}

/** Lines "block.N.name=vda", "block.N.capacity=BYTES". */
function sizesIn(stats: string): Map<string, number> {
  const values = new Map(
    stats.split("\n").flatMap((line) => {
      const match = /^\s*(block\.\d+\.(?:name|capacity))=(.*)$/.exec(line);
      return match === null ? [] : [[match[1]!, match[2]!] as const];
    }),
  );
  const sizes = new Map<string, number>();
  for (const [key, name] of values) {
    const size = Number(values.get(key.replace(/name$/, "capacity")));
    if (key.endsWith(".name") && Number.isSafeInteger(size) && !sizes.has(name)) sizes.set(name, size);
  }
  return sizes;
}

function withoutUser(uri: string): string {
  return uri.replace(/\/\/[^/@]*@/, "//");
}

/**
 * Those to be backed up: the named ones in their order in the domain; without names, all that the guest can write.
 *
 * @throws AppError E_DISK_UNKNOWN, E_NO_DISKS (notFound).
 */
export function selectDomainDisks(
  { name, disks }: Pick<Domain, "name" | "disks">,
  names: readonly string[] | undefined,
): DomainDisk[] {
  const there = disks.map((disk) => disk.name);
  const unknown = names?.find((one) => !there.includes(one));
  if (unknown !== undefined) {
    const message = `Domain ${name} has no disk ${unknown}; it has ${there.join(", ") || "none"}`;
    throw new AppError("notFound", "E_DISK_UNKNOWN", message, { disk: unknown });
  }
  const chosen = disks.filter((disk) => names?.includes(disk.name) ?? !disk.readOnly);
  if (chosen.length > 0) return chosen;
  throw new AppError("notFound", "E_NO_DISKS", `Domain ${name} has no disk that could be backed up`);
}
