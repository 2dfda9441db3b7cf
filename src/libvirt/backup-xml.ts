import { writeXml, type Written } from "./xml.ts";

/** A disk as it is asked for. */
export interface AskedDisk {
  readonly name: string;
  /** The checkpoint that it is incremental to; undefined: all of it. */
  readonly since: string | undefined;
  /** Whether the new checkpoint tracks it. */
  readonly tracked: boolean;
  readonly exportName: string;
  /** A path that is not there yet: libvirt makes the image, and removes it. */
  readonly scratch: string;
}

/**
 * A pull backup of these disks. Each says what it wants: what is not said, libvirt chooses.
 *
 * @param socket where QEMU is to serve. @param bitmap the name under which changed blocks are exported.
 */
export function backupXml(disks: readonly AskedDisk[], socket: string, bitmap: string): string {
  const disk = ({ name, since, exportName, scratch }: AskedDisk): Written => ({
    name: "disk",
    attributes: {
      ...{ name, backup: "yes", type: "file", exportname: exportName },
      backupmode: since === undefined ? "full" : "incremental",
      incremental: since,
      exportbitmap: since === undefined ? undefined : bitmap,
    },
    children: [
      { name: "driver", attributes: { type: "qcow2" } },
      { name: "scratch", attributes: { file: scratch } },
    ],
  });
  return writeXml({
    name: "domainbackup",
    attributes: { mode: "pull" },
    children: [
      { name: "server", attributes: { transport: "unix", socket } },
      { name: "disks", children: disks.map(disk) },
    ],
  });
}

/** The checkpoint that begins with it. @param others disks of the domain that it does not touch. */
export function checkpointXml(
  name: string,
  description: string,
  disks: readonly AskedDisk[],
  others: readonly string[],
): string {
  const disk = (target: string, checkpoint: "bitmap" | "no"): Written => ({
    name: "disk",
    attributes: { name: target, checkpoint },
  });
  return writeXml({
    name: "domaincheckpoint",
    children: [
      { name: "name", children: [name] },
      { name: "description", children: [description] },
      {
        name: "disks",
        children: [
          ...disks.map((one) => disk(one.name, one.tracked ? "bitmap" : "no")),
          ...others.map((one) => disk(one, "no")),
        ],
      },
    ],
  });
}
