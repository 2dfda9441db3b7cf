import { messageOf } from "../errors.ts";
import type { Environment } from "../jobs/interpolate.ts";
import { Notes, noteOf, type Note } from "../watch/notes.ts";
import type { Deadline } from "./deadline.ts";
import { optional } from "./edge.ts";
import type { Log } from "./log.ts";

/** What writing one may take, milliseconds; also when the invocation is nearly over. */
const WRITE_MS = 5000;

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
    writeNote(environment, { ...subject, at: new Date().toISOString(), ...note }, log);
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
  const at = new Date().toISOString();
  await writeNote(environment, { ...subject, at, state: "failed", ...noteOf(failure) }, log);
}

async function writeNote(environment: Environment, note: Omit<Note, "format">, log: Log): Promise<void> {
  const location = optional(environment, "BLOCKHAUL_NOTES");
  if (location === undefined) return;
  try {
    const notes = await Notes.open(location);
    try {
      await notes.write(note, AbortSignal.timeout(WRITE_MS));
    } finally {
      notes.close();
    }
  } catch (error) {
    log.warn(`The watch will not hear of this, because no note could be left: ${messageOf(error)}`);
  }
}
