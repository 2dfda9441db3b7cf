import { setImmediate as turn } from "node:timers/promises";
import { AppError, hasCode, messageOf } from "../errors.ts";
import type { RunDisk } from "./fleecing.ts";
import type { RunNames } from "./names.ts";
import type { QmpClient } from "./qmp/client.ts";
import type { QmpEvent, QmpListener } from "./qmp/events.ts";

const EVENTS = [
  "BLOCK_JOB_COMPLETED",
  "BLOCK_JOB_CANCELLED",
  "BLOCK_JOB_ERROR",
  "BLOCK_WRITE_THRESHOLD",
  "BLOCK_IO_ERROR",
  "BLOCK_EXPORT_DELETED",
  "SHUTDOWN",
];

const never = new AbortController().signal;

/** Listens for what ends a point in time before its time. Opened before the point in time is made. */
export class Watch {
  /** AppError E_POINT_IN_TIME_LOST (source), as soon as it is. Never resolves. */
  readonly lost: Promise<never>;
  readonly #listener: QmpListener;
  readonly #names: RunNames;
  readonly #disks: readonly RunDisk[];
  readonly #reject: (reason: AppError) => void;
  #failure: AppError | undefined;

  constructor(client: QmpClient, names: RunNames, disks: readonly RunDisk[]) {
    const { promise, reject } = Promise.withResolvers<never>();
    this.lost = promise;
    this.lost.catch(() => undefined); // whoever waits hears it
    this.#reject = reject;
    this.#names = names;
    this.#disks = disks;
    this.#listener = client.listen(EVENTS);
    void this.#follow();
  }

  /** @throws AppError E_POINT_IN_TIME_LOST (source) when an event has said so by now. */
  async check(): Promise<void> {
    await turn(); // events that came before the answer that was awaited last have been looked at by then
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** @param why the end of "The point in time is lost: …". */
  lose(why: string, cause?: unknown): AppError {
    this.#failure ??= new AppError(
      "source",
      "E_POINT_IN_TIME_LOST",
      `The point in time is lost: ${why}`,
      {},
      cause,
    );
    this.#reject(this.#failure);
    return this.#failure;
  }

  /** From now on events are our own doing. Safe to call twice. */
  close(): void {
    this.#listener.close();
  }

  async #follow(): Promise<void> {
    try {
      while (this.#failure === undefined) {
        const event = await this.#listener.next(() => true, never);
        const why = this.#whyLost(event);
        if (why !== undefined) this.lose(why);
      }
      this.#listener.close(); // nothing more is needed, and nothing may pile up
    } catch (error) {
      if (!hasCode(error, "E_QMP_NOT_LISTENING")) this.lose(messageOf(error), error);
    }
  }

  #whyLost({ event, data }: QmpEvent): string | undefined {
    const text = (key: string): string => (typeof data[key] === "string" ? data[key] : "");
    const disk = this.#disks.find((one) => this.#concerns(one, data));
    switch (event) {
      case "SHUTDOWN":
        return "the VM was shut down";
      case "BLOCK_WRITE_THRESHOLD":
        return (
          disk && `the scratch space of disk ${disk.disk.name} is used up; give it more with --scratch-size`
        );
      case "BLOCK_IO_ERROR":
        // a copy that failed is not to be told from a write of the guest that failed by itself
        if (text("operation") === "read") return undefined;
        return disk && `an I/O error on disk ${disk.disk.name}${text("reason") && `: ${text("reason")}`}`;
      case "BLOCK_EXPORT_DELETED":
        return disk && `the export of disk ${disk.disk.name} was deleted by another hand`;
      default:
        return disk && `the job of disk ${disk.disk.name} has ended${text("error") && `: ${text("error")}`}`;
    }
  }

  /** Whether an event names the disk, or something of the run that belongs to it. */
  #concerns({ index, disk }: RunDisk, data: QmpEvent["data"]): boolean {
    const names = this.#names;
    const nodes = (["s", "f", "b", "c", "a"] as const).map((role) => names.node(role, index));
    const ours = [...nodes, names.job(index), names.export(index), disk.node];
    return ["device", "node-name", "id"].some((key) => {
      const value = data[key];
      return typeof value === "string" && ours.includes(value);
    });
  }
}
