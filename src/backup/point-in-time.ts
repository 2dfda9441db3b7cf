import type { DiskSource } from "../disk/disk.ts";

/**
 * What became of the generation: durable; not there; or not known, because the store did not answer, so that
 * whatever either case needs must be kept (both bitmaps) and the next run decides.
 */
export type Outcome = "committed" | "failed" | "unknown";

/** Times in milliseconds. */
export interface GuestPause {
  /** How long the guest's file systems stood frozen; undefined when they did not. */
  readonly frozenMs: number | undefined;
  /** How long the instant itself took: all that the guest had to be frozen for. */
  readonly takeMs: number;
}

/**
 * Every disk of a source at one instant, held open while it is copied.
 *
 * Implemented by plain NBD exports (`nbd-exports.ts`), where whoever runs the server vouches for the instant, and by a
 * running QEMU (`qemu-vm.ts`).
 */
export interface PointInTime {
  /** By the disk's name, in the order of the manifest. */
  readonly disks: ReadonlyMap<string, DiskSource>;
  /** How the guest's file systems stand: `unknown` when nobody told us. */
  readonly consistency: "filesystem" | "crash" | "unknown";
  /** By disk: the source's bitmap that counts changes since this instant. Absent: it keeps none. */
  readonly bitmaps?: ReadonlyMap<string, string>;
  /** What the guest felt of it. */
  readonly guest?: GuestPause;
  /** Never resolves; rejects as soon as the source finds that the instant is lost, so that the run can stop at once. */
  readonly lost?: Promise<never>;

  /**
   * Asked after the last read and before anything is committed.
   * @throws AppError (source) when what was read may be something else than the instant.
   */
  assertAlive(signal: AbortSignal): Promise<void>;

  /** Ends it, whatever happened. Called once, never throws. */
  close(outcome: Outcome): Promise<void>;
}
