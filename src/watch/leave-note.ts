import { messageOf } from "../errors.ts";
import { Notes, type Note } from "./notes.ts";

/** What writing one may take, milliseconds; also when whoever leaves it has to end soon. */
const WRITE_MS = 5000;

/** Leaves a note where there is a place for notes. What cannot be noted is no failure: then `warn` hears of it. */
export async function leaveNote(
  location: string | undefined,
  note: Omit<Note, "format" | "at">,
  warn: (message: string) => void,
): Promise<void> {
  if (location === undefined) return;
  try {
    const notes = await Notes.open(location);
    try {
      await notes.write({ at: new Date().toISOString(), ...note }, AbortSignal.timeout(WRITE_MS));
    } finally {
      notes.close();
    }
  } catch (error) {
    warn(`The watch will not hear of this, because no note could be left: ${messageOf(error)}`);
  }
}
