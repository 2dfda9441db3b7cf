import { TOKEN, UUID } from "../qemu/names.ts";

const CHECKPOINT_FORM = new RegExp(`^bk-(${UUID})-(${UUID})$`);
const SOCKET_FORM = new RegExp(`(?:^|/)bk-(${TOKEN})\\.sock$`);

/**
 * The checkpoint of a domain that records what changes after a generation. What has no such name is somebody else's.
 *
 * Libvirt has the bitmap on each disk bear the checkpoint's name and no other, so that nothing in a bitmap tells
 * whose disk it is; which image was under a checkpoint, its stored description of the domain does.
 */
export function generationCheckpoint(repository: string, generation: string): string {
  return `bk-${repository}-${generation}`;
}

export interface GenerationCheckpoint {
  readonly repository: string;
  readonly generation: string;
}

export function parseCheckpoint(name: string): GenerationCheckpoint | undefined {
  const match = CHECKPOINT_FORM.exec(name);
  return match === null ? undefined : { repository: match[1]!, generation: match[2]! };
}

/** The token of the run whose backup job serves this socket (`RunNames.socket`); undefined: it is none of ours. */
export function tokenOfSocket(path: string): string | undefined {
  return SOCKET_FORM.exec(path)?.[1];
}

/** How the runs on a domain find each other in their scratch folder, whatever the connection is called. */
export function runKey(uuid: string): string {
  return `/libvirt/${uuid}`; // absolute, as a monitor's path is
}
