import { randomBytes } from "node:crypto";
import { tmpdir } from "node:os";
import { join } from "node:path";

/**
 * Every name that we give to something in QEMU or beside it, made and recognised.
 *
 *     nodes      bk-<token>-s<N>   scratch image        bk-<token>-f<N>  the file it lies in
 *                bk-<token>-b<N>   a job's filter       bk-<token>-c<N>  copy-before-write filter
 *                bk-<token>-a<N>   snapshot access
 *     jobs       bk-<token>-job-<N>                     exports  bk-<token>-exp-<N>
 *     bitmaps    bk-<token>-tmp    the copy of the parent's bitmap, for export
 *                bk-<token>-c<N>   marks the node that a copy-before-write filter was put over
 *                bk-<repository>-<generation>-<disk>    changes since a generation; the only ones that stay
 *     files      bk-<token>-<N>.qcow2, bk-<token>.run, bk-<token>.sock
 *
 * The token is that of a run: 12 hexadecimal digits. N counts the disks of a run, so a node's name has at most 21
 * of the 31 bytes that QEMU allows. What has no such name is somebody else's.
 */
export const UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
export const TOKEN = "[0-9a-f]{12}";
const INDEX = "0|[1-9][0-9]{0,3}";

const NODE_FORM = new RegExp(`^bk-(${TOKEN})-([sfbca])(${INDEX})$`);
const JOB_FORM = new RegExp(`^bk-(${TOKEN})-job-(${INDEX})$`);
const EXPORT_FORM = new RegExp(`^bk-(${TOKEN})-exp-(${INDEX})$`);
const TEMPORARY_FORM = new RegExp(`^bk-(${TOKEN})-(?:tmp|c(?:${INDEX}))$`);
const FILE_FORM = new RegExp(`^bk-(${TOKEN})(?:-(?:${INDEX})\\.qcow2|\\.run(?:\\.new)?)$`);
const GENERATION_FORM = new RegExp(`^bk-(${UUID})-(${UUID})-([A-Za-z0-9._-]{1,128})$`);

/** The most bytes that the path of a Unix socket may have (`sun_path`, less its end). */
const SOCKET_PATH_MAX = 107;

/** What a node of ours is for: the letter in its name. */
export type NodeRole = "s" | "f" | "b" | "c" | "a";

/** The names of one run. */
export class RunNames {
  readonly token: string;

  /** @param token 12 hexadecimal digits in lower case. */
  constructor(token: string) {
    this.token = token;
  }

  node(role: NodeRole, index: number): string {
    return `bk-${this.token}-${role}${index}`;
  }

  job(index: number): string {
    return `bk-${this.token}-job-${index}`;
  }

  export(index: number): string {
    return `bk-${this.token}-exp-${index}`;
  }

  get temporaryBitmap(): string {
    return `bk-${this.token}-tmp`;
  }

  markBitmap(index: number): string {
    return this.node("c", index);
  }

  scratchFile(folder: string, index: number): string {
    return join(folder, `bk-${this.token}-${index}.qcow2`);
  }

  runFile(folder: string): string {
    return join(folder, `bk-${this.token}.run`);
  }

  /** In the folder, or where temporary files go when a socket's path there would be too long for the system. */
  socket(folder: string): string {
    const path = join(folder, `bk-${this.token}.sock`);
    return Buffer.byteLength(path) <= SOCKET_PATH_MAX ? path : join(tmpdir(), `bk-${this.token}.sock`);
  }
}

/** Of a run, by its UUID of version 7: the end of it is random. */
export function tokenOfRun(run: string): string {
  return run.slice(-12);
}

/** Of a run that makes no generation. */
export function newToken(): string {
  return randomBytes(6).toString("hex");
}

export function parseNode(name: string): { token: string; role: NodeRole; index: number } | undefined {
  const match = NODE_FORM.exec(name);
  return match === null
    ? undefined
    : { token: match[1]!, role: match[2] as NodeRole, index: Number(match[3]) };
}

/** The token in the name of a run's job. */
export function tokenOfJob(id: string): string | undefined {
  return JOB_FORM.exec(id)?.[1];
}

/** The token in the name of a run's export. */
export function tokenOfExport(id: string): string | undefined {
  return EXPORT_FORM.exec(id)?.[1];
}

/** The token in the name of a bitmap that lives no longer than its run. */
export function tokenOfBitmap(name: string): string | undefined {
  return TEMPORARY_FORM.exec(name)?.[1];
}

/** The token in the base name of a file of a run. */
export function tokenOfFile(name: string): string | undefined {
  return FILE_FORM.exec(name)?.[1];
}

/**
 * The bitmap that records what changes on a disk after a generation.
 *
 * The disk's name is part of it: when a VM's disks change places (an automatic `virtio1` becomes `virtio0` once the
 * first drive is taken out), the bitmap must not be taken for that of the disk that had the name before.
 */
export function generationBitmap(repository: string, generation: string, disk: string): string {
  return `bk-${repository}-${generation}-${disk}`;
}

export interface GenerationBitmap {
  readonly repository: string;
  readonly generation: string;
  readonly disk: string;
}

export function parseGenerationBitmap(name: string): GenerationBitmap | undefined {
  const match = GENERATION_FORM.exec(name);
  return match === null ? undefined : { repository: match[1]!, generation: match[2]!, disk: match[3]! };
}
