import { AppError } from "../errors.ts";
import { Budget } from "../flow/budget.ts";
import type { PartUpload } from "../store/store.ts";
import type { Repository } from "./config.ts";
import { crc32Combine } from "./crc32-combine.ts";
import { packKey } from "./names.ts";
import { encodePackHeader, packLength } from "./pack.ts";
import { type CompletedPack, PackAssembly } from "./pack-assembly.ts";
import type { Slot } from "./pack-directory.ts";
import { type Part, PartBuffers } from "./part-buffers.ts";

export type { CompletedPack } from "./pack-assembly.ts";

/** What a chunk worker says about the blob it made. */
export type BlobEntry = Omit<Slot, "storedLength">;

export interface PackWriterOptions {
  /**
   * Part buffers, the one being filled included, 2 or more: memory is this many times the repository's part size.
   */
  readonly partsInFlight: number;
  /** Called once for each pack, after its upload was acknowledged; one call at a time. A failure fails the run. */
  readonly onPack: (pack: CompletedPack) => void | Promise<void>;
}

/** Packs begun and not yet acknowledged; more would only wait for the same uplink. */
const PACKS_OPEN_MAX = 4;

interface OpenPack {
  readonly assembly: PackAssembly;
  readonly upload: Promise<PartUpload>;
  /** Parts handed to `upload`, by number. */
  readonly sent: Promise<void>[];
  /** Makes room for another pack. */
  readonly leave: () => void;
  part: Part | undefined;
}

/**
 * Writes blobs, one after the other, into packs and these into the store.
 *
 * A blob is copied once, into the part that goes out; when no part buffer is free, `append` waits. A pack that is
 * full uploads on while the next one fills. The first failure aborts the run; when `finish` or `abort` settles,
 * nothing is running any more and what was not completed has been dropped. One of the two must be called.
 */
export class PackWriter {
  readonly #repository: Repository;
  readonly #onPack: PackWriterOptions["onPack"];
  readonly #run: AbortController;
  readonly #parts: PartBuffers;
  readonly #packs = new Budget(PACKS_OPEN_MAX);
  readonly #publishing = new Set<Promise<void>>();
  #announced: Promise<void> = Promise.resolve();
  #open: OpenPack | undefined;
  #appending: Promise<unknown> | undefined;
  #closed = false;

  constructor(repository: Repository, options: PackWriterOptions, run: AbortController) {
    this.#repository = repository;
    this.#onPack = options.onPack;
    this.#run = run;
    this.#parts = new PartBuffers(repository.config.partSize, options.partsInFlight);
  }

  /**
   * Adds a blob to the pack that is being filled. One call at a time.
   *
   * @param blob as stored; free for other use once the call has settled.
   * @param entry checked against the blob: what was copied must have its CRC-32.
   * @returns the blob's address, which holds once `onPack` has told of the pack.
   * @throws the run's first failure, which may be older than this call.
   */
  async append(blob: Uint8Array, entry: BlobEntry): Promise<{ pack: string; slot: number }> {
    if (this.#closed || this.#appending !== undefined) {
      throw new AppError(
        "bug",
        "E_PACK_WRITER",
        "The pack writer takes one blob at a time, and none after its end",
      );
    }
    const appending = this.#append(blob, entry);
    this.#appending = appending;
    try {
      return await appending;
    } catch (reason) {
      this.#run.abort(reason);
      throw this.#run.signal.reason;
    } finally {
      this.#appending = undefined;
    }
  }

  /**
   * Completes what is open and waits for every pack.
   * @throws the run's first failure; everything unfinished has been dropped then.
   */
  async finish(): Promise<void> {
    this.#closed = true;
    try {
      this.#run.signal.throwIfAborted();
      if (this.#open !== undefined) await this.#close(this.#open);
    } catch (reason) {
      this.#run.abort(reason);
    }
    await this.#settle();
    this.#run.signal.throwIfAborted();
  }

  /** Aborts the run and drops what is not complete. After `finish` there is nothing left to do. */
  async abort(): Promise<void> {
    if (!this.#closed) this.#run.abort(new AppError("cancelled", "E_STOPPED", "The pack writer was stopped"));
    this.#closed = true;
    await this.#settle();
  }

  async #append(blob: Uint8Array, entry: BlobEntry): Promise<{ pack: string; slot: number }> {
    this.#run.signal.throwIfAborted();
    if (this.#open?.assembly.hasRoom(blob.length) === false) await this.#close(this.#open);
    this.#open ??= await this.#begin();
    const { assembly } = this.#open;
    const copied = await this.#write(this.#open, blob);
    if (copied !== entry.crc32) {
      throw new AppError("bug", "E_BLOB_CHANGED", "A blob changed between being sealed and being packed");
    }
    return { pack: assembly.pack, slot: assembly.add({ ...entry, storedLength: blob.length }) };
  }

  async #begin(): Promise<OpenPack> {
    const { store, sealer } = this.#repository;
    const leave = await this.#packs.take(1, this.#run.signal);
    const assembly = new PackAssembly(this.#repository);
    const upload = store.beginUpload(packKey(assembly.pack), this.#run.signal);
    upload.catch((reason: unknown) => this.#run.abort(reason));
    const open: OpenPack = { assembly, upload, sent: [], leave, part: undefined };
    this.#open = open; // from here on `#settle` knows of it
    await this.#write(open, encodePackHeader(sealer.encrypted));
    return open;
  }

  /** Copies bytes into the pack's parts and sends those that are full. @returns CRC-32 of the copy. */
  async #write(open: OpenPack, bytes: Uint8Array): Promise<number> {
    let checksum = 0;
    for (let at = 0; at < bytes.length;) {
      open.part ??= await this.#parts.take(this.#run.signal);
      const { part } = open;
      const piece = bytes.subarray(at, at + part.bytes.length - part.filled);
      const copy = part.bytes.subarray(part.filled, part.filled + piece.length);
      copy.set(piece);
      checksum = crc32Combine(checksum, open.assembly.written(copy), copy.length);
      part.filled += piece.length;
      at += piece.length;
      if (part.filled === part.bytes.length) this.#send(open, part);
    }
    return checksum;
  }

  #send(open: OpenPack, part: Part): void {
    const number = open.sent.length;
    const bytes = part.bytes.subarray(0, part.filled);
    const sent = open.upload
      .then((upload) => upload.part(number, bytes, this.#run.signal))
      .finally(part.giveBack);
    sent.catch((reason: unknown) => this.#run.abort(reason));
    open.sent.push(sent);
    open.part = undefined;
  }

  /** Writes directory and trailer, and leaves the pack to be published in the background. */
  async #close(open: OpenPack): Promise<void> {
    const { stored, directory } = open.assembly.directory();
    await this.#write(open, stored);
    const trailer = open.assembly.trailer(directory, stored.length);
    await this.#write(open, trailer);
    if (open.part !== undefined) this.#send(open, open.part);
    this.#open = undefined;
    const objectSize = packLength(
      directory.slotCount,
      directory.blobBytes,
      this.#repository.sealer.encrypted,
    );
    const pack: CompletedPack = { pack: directory.pack, directory, storedDirectory: stored, objectSize };
    const publishing = this.#publish(open, pack).finally(() => this.#publishing.delete(publishing));
    this.#publishing.add(publishing);
  }

  /** Never rejects: a failure goes to the run. */
  async #publish(open: OpenPack, pack: CompletedPack): Promise<void> {
    try {
      await Promise.all(open.sent);
      const upload = await open.upload;
      await upload.complete(this.#run.signal);
    } catch (reason) {
      this.#run.abort(reason);
      await this.#drop(open);
      return;
    } finally {
      open.leave();
    }
    this.#announced = this.#announced.then(() => this.#onPack(pack));
    await this.#announced.catch((reason: unknown) => this.#run.abort(reason));
  }

  /** Waits until nothing of the pack is under way and drops its upload. The run has failed already. */
  async #drop(open: OpenPack): Promise<void> {
    open.part?.giveBack();
    await Promise.allSettled(open.sent);
    // A failure here would hide why the run failed; an upload left behind is found by the next run.
    await open.upload.then((upload) => upload.abort()).catch(() => undefined);
  }

  async #settle(): Promise<void> {
    await Promise.allSettled([this.#appending]);
    if (this.#open !== undefined) await this.#drop(this.#open);
    this.#open = undefined;
    await Promise.all(this.#publishing);
  }
}
