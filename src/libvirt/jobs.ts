import { hasCode } from "../errors.ts";
import type { DomainHandle } from "./domain.ts";
import { attributeOf, childOf, childrenOf, parseXml } from "./xml.ts";

/** A domain that is off, or known no more, is not being backed up either. */
const NO_JOB = ["E_NO_BACKUP_JOB", "E_DOMAIN_OFF", "E_DOMAIN_UNKNOWN"] as const;

/** A disk of a backup job. */
export interface JobDisk {
  readonly name: string;
  readonly mode: string | undefined;
  /** The checkpoint that it is incremental to. */
  readonly since: string | undefined;
  readonly exportName: string | undefined;
}

/** A backup of the domain that is under way. */
export interface BackupJob {
  /** Where it serves NBD; undefined: it is of another kind. */
  readonly socket: string | undefined;
  readonly disks: readonly JobDisk[];
}

/** Undefined when no backup is under way. @throws as `Virsh.run`. */
export async function backupJob(domain: DomainHandle, signal: AbortSignal): Promise<BackupJob | undefined> {
  let text: string;
  try {
    text = await domain.ask("backup-dumpxml", [], signal);
  } catch (error) {
    if (NO_JOB.some((code) => hasCode(error, code))) return undefined;
    throw error;
  }
  const xml = parseXml(text, "domainbackup");
  const disks = childrenOf(childOf(xml, "disks"), "disk")
    .filter((disk) => attributeOf(disk, "backup") !== "no")
    .map((disk) => ({
      name: attributeOf(disk, "name") ?? "",
      mode: attributeOf(disk, "backupmode"),
      since: attributeOf(disk, "incremental"),
      exportName: attributeOf(disk, "exportname"),
    }));
  return { socket: attributeOf(childOf(xml, "server"), "socket"), disks };
}

export interface JobFacts {
  /** Something has the domain: a backup, a migration, a save. */
  readonly active: boolean;
  /** Bytes that the scratch of a backup takes. */
  readonly scratchUsed: number;
}

/** @throws as `Virsh.run`. */
export async function jobFacts(domain: DomainHandle, signal: AbortSignal): Promise<JobFacts> {
  const facts = new Map(
    (await domain.ask("domjobinfo", ["--rawstats"], signal)).split("\n").flatMap((line) => {
      const match = /^(.+?):\s+(\d+)\s*$/.exec(line);
      return match === null ? [] : [[match[1]!, Number(match[2])] as const];
    }),
  );
  return { active: (facts.get("Job type") ?? 0) !== 0, scratchUsed: facts.get("disk_temp_used") ?? 0 };
}
