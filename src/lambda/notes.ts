import type { Environment } from "../jobs/interpolate.ts";
import { leaveNote } from "../watch/leave-note.ts";
import { noteOf, type Note } from "../watch/notes.ts";
import type { Deadline } from "./deadline.ts";
import { optional } from "./edge.ts";
import type { Log } from "./log.ts";

type Subject = Pick<Note, "by" | "job" | "source">;

/**
 * Leaves a note of a piece of work for the watch (`BLOCKHAUL_NOTES`): that it began, so that the watch notices when
 * memory or time ran out, and how it ended. Without a place nothing is noted; what cannot be noted is no failure.
 */
export async function noting<T>(
  subject: Subject,
  {
    environment,
    deadline,
    log,
  }: { readonly environment: Environment; readonly deadline: Deadline; readonly log: Log },
  work: () => Promise<{ readonly value: T; readonly failure: unknown }>,
): Promise<T> {
  const write = (note: Omit<Note, "format" | keyof Subject | "at">): Promise<void> =>
    writeNote(environment, { ...subject, ...note }, log);
  await write({ state: "running", until: new Date(deadline.killedAt).toISOString() });
  try {
    const { value, failure } = await work();
    await write(failure === undefined ? { state: "done" } : { state: "failed", ...noteOf(failure) });
    return value;
  } catch (error) {
    await write({ state: "failed", ...noteOf(error) });
    throw error;
  }
}

/** Notes a failure that is about nothing that was begun. */
export async function noteFailure(
  subject: Subject,
  failure: unknown,
  environment: Environment,
  log: Log,
): Promise<void> {
  await writeNote(environment, { ...subject, state: "failed", ...noteOf(failure) }, log);
}

async function writeNote(
  environment: Environment,
  note: Omit<Note, "format" | "at">,
  log: Log,
): Promise<void> {
  await leaveNote(optional(environment, "BLOCKHAUL_NOTES"), note, (message) => log.warn(message));
}
