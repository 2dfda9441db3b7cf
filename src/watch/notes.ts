import { hash } from "node:crypto";
import { z } from "zod";
import { AppError, messageOf } from "../errors.ts";
import { openNewStore } from "../store/open.ts";
import type { ObjectStore } from "../store/store.ts";

/** Bytes of a note. */
const NOTE_SIZE_MAX = 16 * 1024;

/** Bytes of what the watch remembers. */
const STATE_SIZE_MAX = 4 * 1024 * 1024;

const NOTES = "notes/";
const STATE_KEY = "state.json";

const noteSchema = z
  .strictObject({
    format: z.literal(1),
    /** Whose: "dispatch", "pull", "maintain", "agent". */
    by: z.string().max(64),
    /** Of an agent: where it runs. */
    host: z.string().max(128).optional(),
    /** "" when it is about no job, or no source, in particular. */
    job: z.string().max(128),
    source: z.string().max(128),
    /** `running`: and if it is still that after `until`, it ended without a word. */
    state: z.enum(["running", "done", "failed"]),
    at: z.iso.datetime(),
    until: z.iso.datetime().optional(),
    code: z.string().max(64).optional(),
    message: z.string().max(2000).optional(),
  })
  .readonly();

/** What one of our functions, or an agent, says of its latest work on something. */
export type Note = z.infer<typeof noteSchema>;

const stateSchema = z.strictObject({
  format: z.literal(1),
  /** By the findings' ids: since when. */
  findings: z.record(z.string().max(1024), z.iso.datetime()),
});

/** What was found the last time, and since when it has been so; by id. */
export type WatchState = Readonly<Record<string, string>>;

/**
 * What functions and agents leave for the watch, and what the watch remembers: a few small objects in a place of their own, as
 * s3://BUCKET/PREFIX or a directory, outside of every repository. So the watch needs no right to write in a repository,
 * and nothing in there is needed for a restore. It may be deleted: then what is wrong is told once more.
 */
export class Notes {
  readonly #store: ObjectStore;

  private constructor(store: ObjectStore) {
    this.#store = store;
  }

  /** @throws AppError E_LOCATION (usage). */
  static async open(location: string): Promise<Notes> {
    return new Notes(await openNewStore(location));
  }

  /** Takes the place of the note before on the same subject. */
  async write(note: Omit<Note, "format">, signal: AbortSignal): Promise<void> {
    const text = JSON.stringify(
      noteSchema.parse({ format: 1, ...note, message: note.message?.slice(0, 2000) }),
    );
    // an order that one host failed at another may do; of itself each host speaks alone
    const subject = [note.by, note.job, note.source, ...(note.job === "" ? [note.host] : [])];
    const name = hash("sha256", JSON.stringify(subject)).slice(0, 32);
    await this.#store.replace(`${NOTES}${name}.json`, Buffer.from(text), signal);
  }

  /** All there are; what cannot be read is left out. */
  async read(signal: AbortSignal): Promise<Note[]> {
    const notes: Note[] = [];
    for await (const { key } of this.#store.list(NOTES, signal)) {
      const note = await this.#parsed(key, NOTE_SIZE_MAX, noteSchema, signal);
      if (note !== undefined) notes.push(note);
    }
    return notes;
  }

  /** What the watch found the last time; nothing, where that is lost. */
  async state(signal: AbortSignal): Promise<WatchState> {
    for await (const { key } of this.#store.list(STATE_KEY, signal)) {
      if (key === STATE_KEY)
        return (await this.#parsed(key, STATE_SIZE_MAX, stateSchema, signal))?.findings ?? {};
    }
    return {}; // S3 says of a missing object that it may not be read, where one may not list the whole bucket
  }

  async remember(findings: WatchState, signal: AbortSignal): Promise<void> {
    await this.#store.replace(STATE_KEY, Buffer.from(JSON.stringify({ format: 1, findings })), signal);
  }

  close(): void {
    this.#store.close();
  }

  async #parsed<T>(
    key: string,
    limit: number,
    schema: z.ZodType<T>,
    signal: AbortSignal,
  ): Promise<T | undefined> {
    try {
      return schema.safeParse(JSON.parse((await this.#store.get(key, limit, signal)).toString("utf8"))).data;
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof SyntaxError) return undefined;
      if (error instanceof AppError && ["notFound", "corrupt"].includes(error.kind)) return undefined;
      throw error;
    }
  }
}

/** What a note says of a failure. */
export function noteOf(failure: unknown): Pick<Note, "code" | "message"> {
  const code = failure instanceof AppError ? failure.code : "E_UNEXPECTED";
  return { code, message: messageOf(failure) };
}
