import { hasCode } from "../errors.ts";
import { imagesOf, type DomainHandle } from "./domain.ts";
import { parseCheckpoint, type GenerationCheckpoint } from "./names.ts";
import { attributeOf, childOf, childrenOf, parseXml, writeXml, type Element } from "./xml.ts";

/** What a checkpoint knows of a disk that it tracks. */
export interface CheckpointDisk {
  /** Bytes that changed since; undefined: its bitmap is missing or broken. */
  readonly dirtyBytes: number | undefined;
  /** The image that the disk had when the checkpoint was made; undefined: it is not told. */
  readonly image: string | undefined;
}

/** A checkpoint of ours. */
export interface Checkpoint extends GenerationCheckpoint {
  readonly name: string;
  /** By the disk's name; those that it tracks. */
  readonly disks: ReadonlyMap<string, CheckpointDisk>;
}

/**
 * Those of a domain that are of this repository, in libvirt's order.
 *
 * @param look "dirty": how much has changed since, too, for which QEMU is asked. @throws as `Virsh.run`.
 */
export async function checkpointsOf(
  domain: DomainHandle,
  repository: string,
  look: "dirty" | "disks",
  signal: AbortSignal,
): Promise<Checkpoint[]> {
  const found: Checkpoint[] = [];
  for (const name of await checkpointNames(domain, signal)) {
    const of = parseCheckpoint(name);
    if (of?.repository !== repository) continue;
    const checkpoint = await describe(domain, name, of, look, signal);
    if (checkpoint !== undefined) found.push(checkpoint);
  }
  return found;
}

/** Names of all that a domain has, ours or not. @throws as `Virsh.run`. */
export async function checkpointNames(domain: DomainHandle, signal: AbortSignal): Promise<string[]> {
  const lines = (await domain.ask("checkpoint-list", ["--name"], signal)).split("\n");
  return lines.map((line) => line.trim()).filter((name) => name !== "");
}

/** Undefined when it is gone meanwhile. */
async function describe(
  domain: DomainHandle,
  name: string,
  of: GenerationCheckpoint,
  look: "dirty" | "disks",
  signal: AbortSignal,
): Promise<Checkpoint | undefined> {
  const dump = async (...flags: string[]): Promise<Element> =>
    parseXml(
      await domain.ask("checkpoint-dumpxml", ["--checkpointname", name, ...flags], signal),
      "domaincheckpoint",
    );
  try {
    // a disk that was taken out of the domain has no size, and that is an error of the whole
    const sizes = look === "dirty" ? ["--size"] : [];
    const xml = await dump(...sizes).catch((error: unknown) => {
      if (hasCode(error, "E_LIBVIRT") || hasCode(error, "E_CHECKPOINT_BROKEN")) return dump();
      throw error;
    });
    return { ...of, name, disks: disksIn(xml) };
  } catch (error) {
    if (hasCode(error, "E_CHECKPOINT_MISSING")) return undefined;
    throw error;
  }
}

function disksIn(xml: Element): Map<string, CheckpointDisk> {
  const images = new Map(
    childrenOf(childOf(xml, "domain", "devices"), "disk").map((disk) => [
      attributeOf(childOf(disk, "target"), "dev"),
      imagesOf(disk)[0],
    ]),
  );
  return new Map(
    childrenOf(childOf(xml, "disks"), "disk")
      .filter((disk) => attributeOf(disk, "checkpoint") === "bitmap")
      .map((disk) => {
        const name = attributeOf(disk, "name") ?? "";
        const size = attributeOf(disk, "size");
        return [name, { dirtyBytes: size === undefined ? undefined : Number(size), image: images.get(name) }];
      }),
  );
}

/**
 * Removes a checkpoint and its bitmaps. That it is gone already is as good.
 *
 * Libvirt refuses as long as one of its disks lacks the bitmap: then the others are told apart from it first.
 *
 * @throws as `Virsh.run`; E_DOMAIN_OFF (source): only of a running domain can one be removed.
 */
export async function deleteCheckpoint(
  domain: DomainHandle,
  name: string,
  signal: AbortSignal,
): Promise<void> {
  const remove = (...flags: string[]): Promise<string> =>
    domain.change("checkpoint-delete", ["--checkpointname", name, ...flags]);
  try {
    await remove();
  } catch (error) {
    if (hasCode(error, "E_CHECKPOINT_MISSING")) return;
    if (!hasCode(error, "E_LIBVIRT") && !hasCode(error, "E_CHECKPOINT_BROKEN")) throw error;
    const of = parseCheckpoint(name);
    const known = of === undefined ? undefined : await describe(domain, name, of, "dirty", signal);
    if (known === undefined) throw error;
    const whole = [...known.disks].filter(([, { dirtyBytes }]) => dirtyBytes !== undefined);
    await remove("--metadata");
    if (whole.length === 0) return;
    await redefine(
      domain,
      name,
      whole.map(([disk]) => disk),
    );
    await remove();
  }
}

/** Makes libvirt know a checkpoint of the bitmaps that these disks have. */
async function redefine(domain: DomainHandle, name: string, disks: readonly string[]): Promise<void> {
  const xml = writeXml({
    name: "domaincheckpoint",
    children: [
      { name: "name", children: [name] },
      { name: "creationTime", children: [String(Math.floor(Date.now() / 1000))] },
      {
        name: "disks",
        children: disks.map((disk) => ({
          name: "disk",
          attributes: { name: disk, checkpoint: "bitmap", bitmap: name },
        })),
      },
    ],
  });
  await domain.virsh.runWith("checkpoint-create", [xml], ([path]) => [
    ...["--domain", domain.uuid, "--xmlfile", path!, "--redefine"],
  ]);
}
