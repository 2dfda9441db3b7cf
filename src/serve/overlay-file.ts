import { open, realpath, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { kindOfPath, openFailed, openRawFile, type RawFile } from "../disk/raw-file.ts";
import { syncDirectory } from "../store/durable.ts";
import { BlockStates, STATE_PAGE } from "./block-states.ts";
import { FileLock } from "./file-lock.ts";
import {
  checkIdentity,
  damagedOverlay,
  decodeOverlayHeader,
  encodeOverlayHeader,
  OVERLAY_HEADER_SIZE,
  overlayBlockSize,
  overlayLayout,
  type OverlayIdentity,
  type OverlayLayout,
} from "./overlay-header.ts";

/**
 * An overlay's file, locked: blocks of data, and the state of each.
 *
 * A state is stored only after the block that it speaks of is on stable storage, and never before a flush: whenever the
 * process or the machine stops, each block is as it was at a flush or as it was written since.
 */
export class OverlayFile {
  readonly path: string;
  readonly layout: OverlayLayout;
  readonly states: BlockStates;
  readonly #file: RawFile;
  readonly #lock: FileLock;
  /** Why nothing can be promised any more. */
  #broken: Error | undefined;
  #current: Promise<void> = Promise.resolve();
  #queued: Promise<void> | undefined;

  private constructor(
    path: string,
    layout: OverlayLayout,
    states: BlockStates,
    file: RawFile,
    lock: FileLock,
  ) {
    this.path = path;
    this.layout = layout;
    this.states = states;
    this.#file = file;
    this.#lock = lock;
  }

  /**
   * Opens the overlay, or begins one where there is no file.
   *
   * @throws AppError E_FILE_LOCKED (locked); E_OVERLAY_OTHER, E_OVERLAY_FORMAT (usage); E_OVERLAY (corrupt); those of
   *   `openRawFile`; E_TARGET_FULL (full).
   */
  static async open(path: string, identity: OverlayIdentity, signal: AbortSignal): Promise<OverlayFile> {
    // one name, whatever links lead here: the lock is on the name
    const folder = await realpath(dirname(path)).catch((error: unknown) => {
      throw openFailed(dirname(path), error);
    });
    const real = await realpath(path).catch(() => join(folder, basename(path)));
    const lock = FileLock.take(`${real}.lock`, `The overlay ${path}`);
    try {
      if ((await kindOfPath(real)) === "absent") await create(real, identity);
      const file = await openRawFile(real, "write");
      try {
        const { layout, states } = await load(file, identity, signal);
        return new OverlayFile(real, layout, states, file, lock);
      } catch (error) {
        await file.close();
        throw error;
      }
    } catch (error) {
      lock.release();
      throw error;
    }
  }

  /** Of bytes in state `data`. @param offset on the disk. @throws as `RawFile.read`. */
  async read(offset: number, into: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#file.read(this.layout.dataOffset + offset, into, signal);
  }

  /** Does not touch states. @param offset on the disk. @throws as `RawFile.write`; what broke a flush. */
  async write(offset: number, bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    if (this.#broken !== undefined) throw this.#broken;
    await this.#file.write(this.layout.dataOffset + offset, bytes, signal);
  }

  /**
   * After it resolves, all that was written before, and the states that were set before, are on stable storage.
   *
   * @throws AppError E_DISK_WRITE (source), E_TARGET_FULL (full). When the system could not write what it had taken, it
   *   forgets it: everything later fails with the same error.
   */
  async flush(): Promise<void> {
    // the flush under way may have begun before what was written last; those that wait share the next one
    this.#queued ??= this.#afterCurrent();
    await this.#queued;
  }

  /** After the calls that are under way. Flushes; the lock goes in any case. */
  async close(): Promise<void> {
    try {
      await this.flush();
    } finally {
      await this.#file.close();
      this.#lock.release();
    }
  }

  async #afterCurrent(): Promise<void> {
    await this.#current.catch(() => undefined); // that was told to whoever waited for it
    this.#queued = undefined;
    this.#current = this.#flushNow();
    await this.#current;
  }

  async #flushNow(): Promise<void> {
    if (this.#broken !== undefined) throw this.#broken;
    const changed = this.states.takeDirty(); // only blocks whose data was written by now
    await this.#sync();
    if (changed.length === 0) return;
    try {
      const never = new AbortController().signal;
      for (const { offset, bytes } of changed) {
        await this.#file.write(OVERLAY_HEADER_SIZE + offset, bytes, never);
      }
    } catch (error) {
      this.states.giveBack(changed);
      throw error;
    }
    await this.#sync();
  }

  async #sync(): Promise<void> {
    try {
      await this.#file.flush();
    } catch (error) {
      this.#broken = error as Error; // `RawFile` throws nothing else
      throw error;
    }
  }
}

/** A new overlay appears complete or not at all. Room for the states is taken now: a flush must not lack it. */
async function create(path: string, identity: OverlayIdentity): Promise<void> {
  const layout = overlayLayout(identity.size, overlayBlockSize(identity.size));
  const temporary = `${path}.incomplete`;
  await rm(temporary, { force: true }); // of one who died here; the lock says that nobody is at it
  const file = await open(temporary, "wx", 0o600).catch((error: unknown) => {
    throw openFailed(temporary, error);
  });
  try {
    try {
      await file.write(encodeOverlayHeader(identity, layout.blockSize), 0, OVERLAY_HEADER_SIZE, 0);
      const zeros = Buffer.alloc(Math.min(layout.stateBytes, 64 * STATE_PAGE));
      for (let done = 0; done < layout.stateBytes;) {
        const length = Math.min(zeros.length, layout.stateBytes - done);
        done += (await file.write(zeros, 0, length, OVERLAY_HEADER_SIZE + done)).bytesWritten;
      }
      await file.truncate(layout.fileSize);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    await syncDirectory(dirname(path));
  } catch (error) {
    await rm(temporary, { force: true });
    throw openFailed(path, error);
  }
}

async function load(
  file: RawFile,
  wanted: OverlayIdentity,
  signal: AbortSignal,
): Promise<{ layout: OverlayLayout; states: BlockStates }> {
  const header = Buffer.alloc(Math.min(OVERLAY_HEADER_SIZE, file.size));
  await file.read(0, header, signal);
  const { identity, blockSize } = decodeOverlayHeader(header, file.path);
  checkIdentity(identity, wanted, file.path);
  const layout = overlayLayout(identity.size, blockSize);
  if (file.size < layout.fileSize) throw damagedOverlay(file.path, "it was cut short");
  const bytes = Buffer.alloc(layout.stateBytes);
  await file.read(OVERLAY_HEADER_SIZE, bytes, signal);
  const states = new BlockStates(bytes);
  if (!states.sound) throw damagedOverlay(file.path, "a block is in no state that there is");
  return { layout, states };
}
