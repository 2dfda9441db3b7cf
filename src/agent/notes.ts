import type { BackupOrder } from "../queue/orders.ts";
import { leaveNote } from "../watch/leave-note.ts";
import { noteOf, type Note } from "../watch/notes.ts";
import type { Fulfilment } from "./fulfil.ts";

/**
 * What an agent leaves for the watch: an order that it could not do may have come to no run, and so to no record of one;
 * and who has no queue hears of no order.
 */
export class AgentNotes {
  readonly #location: string;
  readonly #host: string;
  readonly #warn: (message: string) => void;
  /** One after the other: the last word counts. */
  #writing: Promise<void> = Promise.resolve();

  /** @param location of the notes. @param warn hears of notes that could not be left. */
  constructor(location: string, host: string, warn: (message: string) => void) {
    this.#location = location;
    this.#host = host.slice(0, 128);
    this.#warn = warn;
  }

  /** Of a source that another run writes nothing is said: how that one ends will be seen. */
  ended({ job, source }: BackupOrder, result: Fulfilment): void {
    if (result.kind === "locked") return;
    const failure =
      result.kind === "failed"
        ? result.error
        : result.kind === "done"
          ? result.outcome.failure?.error
          : undefined;
    this.#leave({ job, source, ...stateOf(failure) });
  }

  /** A message that is no order. */
  refused(error: unknown): void {
    this.#leave({ job: "", source: "", ...stateOf(error) });
  }

  /** The queue does not answer; undefined: it does again. */
  queue(trouble: unknown): void {
    this.#leave({ job: "", source: "", ...stateOf(trouble) });
  }

  /** When all is written. */
  async settled(): Promise<void> {
    await this.#writing;
  }

  #leave(note: Pick<Note, "job" | "source" | "state" | "code" | "message">): void {
    const whole = { by: "agent", host: this.#host, ...note };
    this.#writing = this.#writing.then(() => leaveNote(this.#location, whole, this.#warn));
  }
}

function stateOf(failure: unknown): Pick<Note, "state" | "code" | "message"> {
  return failure === undefined ? { state: "done" } : { state: "failed", ...noteOf(failure) };
}
