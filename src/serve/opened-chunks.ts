import { KiB, MiB } from "../bytes/size.ts";
import { SlabPool } from "../chunk/slabs.ts";
import { AppError } from "../errors.ts";
import { Budget } from "../flow/budget.ts";
import { retry, type RetryPolicy } from "../flow/retry.ts";
import type { PackRef } from "../repository/pack-directory.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { SharedCalls } from "../repository/shared-calls.ts";
import { spans, type Span, type SpanLimits, type WantedBlob } from "../restore/spans.ts";
import { whenAllAborted } from "./all-aborted.ts";
import { ChunkMemory, type Cell } from "./chunk-memory.ts";
import type { DiskCache } from "./disk-cache.ts";
import { SpanSource } from "./span-source.ts";

/** A chunk of a disk that holds data, and where it lives. */
export interface WantedChunk {
  readonly chunk: number;
  readonly packRef: PackRef;
  readonly slot: number;
}

/** A disk whose chunks are wanted. */
export interface ChunkOwner {
  /** Tells the disks apart that share the memory. */
  readonly key: string;
  /** Bytes of the chunk, which may be short at the end of the disk. */
  lengthOf(chunk: number): number;
}

/** What somebody waits for decides who goes first: a read, or what will probably be read next. */
export type Urgency = "now" | "ahead";

export interface OpenedChunksOptions {
  /** Most bytes of chunks that are kept in memory while nobody reads them; one chunk at least. */
  readonly keptBytes: number;
  /** Bytes; of the repository. */
  readonly chunkSize: number;
  /** How long trouble of the store is sat out. */
  readonly retry: RetryPolicy;
  /** Blobs on a local disk, the caller's. */
  readonly disk?: DiskCache | undefined;
}

/** Ranged GETs under way at once: random reads wait for the store most of their time. */
const GETS = 16;
/** Of these, how many may be for what nobody waits for yet. */
const GETS_AHEAD = 10;
/** Most bytes of one GET, but for a chunk that is larger: a reader waits for all of it. */
const GET_MAX = 2 * MiB;

/** Most bytes of chunks that are lent to whoever sends them: a client may take its time to receive. */
const LENT_MAX = 32 * MiB;
/** Memory for chunks besides those that are kept, bytes: on their way in and out. With chunks over 2 MiB it is more. */
export const IN_MOTION_BYTES = GETS * GET_MAX + LENT_MAX;

/** A chunk that a fetch is for. */
interface Order extends WantedChunk {
  /** Aborted when nobody wants it any more. */
  readonly signal: AbortSignal;
  readonly resolve: (kept: Cell) => void;
  readonly reject: (reason: unknown) => void;
}

/**
 * Opened chunks of served disks: fetched from their packs, checked down to their ids, kept up to a bound, the least
 * recently used given up first. Readers who want the same chunk share one fetch; neighbours in a pack that are asked
 * for together come with one GET. A fetch is given up when nobody waits for it any more.
 */
export class OpenedChunks {
  readonly #tools: ReadTools;
  readonly #policy: RetryPolicy;
  readonly #memory: ChunkMemory;
  readonly #calls = new SharedCalls<Cell>();
  readonly #limits: SpanLimits;
  readonly #stored: SlabPool;
  readonly #ahead = new Budget(GETS_AHEAD);
  readonly #spans: SpanSource;
  #bytesFetched = 0;

  constructor(tools: ReadTools, { keptBytes, chunkSize, retry: policy, disk }: OpenedChunksOptions) {
    this.#tools = tools;
    this.#spans = new SpanSource(tools, disk, GETS / 2);
    this.#policy = policy;
    const rawMax = Math.max(GET_MAX, chunkSize);
    this.#memory = new ChunkMemory({
      chunkSize,
      kept: Math.max(1, Math.floor(keptBytes / chunkSize)),
      arriving: GETS * Math.floor(rawMax / chunkSize),
      lent: Math.ceil(LENT_MAX / chunkSize),
    });
    this.#limits = { storedMax: rawMax + 64 * KiB, rawMax, gapMax: 128 * KiB };
    this.#stored = new SlabPool(this.#limits.storedMax, GETS);
  }

  /** What was fetched from the repository until now, bytes as stored. */
  get bytesFetched(): number {
    return this.#bytesFetched;
  }

  /** A chunk that is in memory; it is to be copied or borrowed at once. */
  kept(owner: ChunkOwner, chunk: number): Cell | undefined {
    return this.#memory.get(keyOf(owner, chunk));
  }

  /** As `ChunkMemory.lend`. */
  lend(chunk: Cell): (() => void) | undefined {
    return this.#memory.lend(chunk);
  }

  /**
   * Fetches chunks, or joins who fetches them already.
   *
   * @returns one promise for each, in order. What it brings is to be copied or borrowed as soon as it is there: later
   *   its memory holds something else. Each ends soon after the signal is aborted.
   * @throws AppError (in the promises) of kind corrupt for that chunk alone; unavailable when the store did not
   *   answer in the time that the policy gives it.
   */
  obtain(
    owner: ChunkOwner,
    wanted: readonly WantedChunk[],
    urgency: Urgency,
    signal: AbortSignal,
  ): Promise<Cell>[] {
    const orders = new Map<string, Order[]>();
    const results = wanted.map((one) =>
      this.#calls.join(keyOf(owner, one.chunk), signal, async (shared) => {
        const { promise, resolve, reject } = Promise.withResolvers<Cell>();
        const order: Order = { ...one, signal: shared, resolve, reject };
        const ofPack = orders.get(one.packRef.pack);
        if (ofPack === undefined) orders.set(one.packRef.pack, [order]);
        else ofPack.push(order);
        return await promise;
      }),
    );
    for (const ofPack of orders.values()) void this.#fetchPack(owner, ofPack, urgency);
    return results;
  }

  /** Never rejects: the orders hear of failures. */
  async #fetchPack(owner: ChunkOwner, orders: readonly Order[], urgency: Urgency): Promise<void> {
    try {
      const { packRef } = orders[0]!;
      const signal = signalOf(orders);
      const { directories } = this.#tools;
      const directory = await retry(this.#policy, signal, () => directories.get(packRef, signal));
      const sorted = orders.toSorted((a, b) => a.slot - b.slot || a.chunk - b.chunk);
      const part = {
        packRef,
        slots: sorted.map(({ slot }) => slot),
        chunks: sorted.map(({ chunk }) => chunk),
      };
      const byChunk = new Map(orders.map((order) => [order.chunk, order]));
      const fetches = [...spans(part, directory, this.#limits)].map((span) =>
        this.#fetchSpan(owner, span, byChunk, urgency),
      );
      await Promise.all(fetches);
    } catch (error) {
      for (const order of orders) order.reject(error);
    }
  }

  async #fetchSpan(
    owner: ChunkOwner,
    span: Span,
    orders: ReadonlyMap<number, Order>,
    urgency: Urgency,
  ): Promise<void> {
    const own = span.blobs.flatMap(({ chunks }) => chunks.map((chunk) => orders.get(chunk)!));
    const signal = signalOf(own);
    try {
      const wait = urgency === "ahead" ? await this.#ahead.take(1, signal) : undefined;
      try {
        await retry(this.#policy, signal, () => this.#open(owner, span, orders, signal));
      } finally {
        wait?.();
      }
    } catch (error) {
      const damaged = error instanceof AppError && error.kind === "corrupt";
      if (!damaged || span.blobs.length === 1) for (const order of own) order.reject(error);
      else
        await Promise.all(span.blobs.map((blob) => this.#fetchSpan(owner, alone(span, blob), orders, "now")));
    }
  }

  async #open(
    owner: ChunkOwner,
    span: Span,
    orders: ReadonlyMap<number, Order>,
    signal: AbortSignal,
  ): Promise<void> {
    checkLengths(owner, span);
    const from = await this.#stored.take(signal);
    try {
      const cells = await this.#memory.take(span.blobs.length);
      const to = { bytes: this.#memory.room };
      const into = cells.map(({ at }) => at);
      const fetched = await this.#spans.open(span, from, to, into, signal).catch((error: unknown) => {
        for (const cell of cells) this.#memory.give(cell);
        throw error;
      });
      span.blobs.forEach(({ slot, chunks }, index) => {
        const cell = cells[index]!;
        const length = span.directory.rawLength(slot);
        for (const chunk of chunks) {
          this.#memory.keep(keyOf(owner, chunk), cell, length);
          orders.get(chunk)!.resolve(cell);
        }
      });
      if (fetched !== undefined) this.#bytesFetched += span.length;
      await this.#spans.keep(span, from, fetched);
    } finally {
      from.release();
    }
  }
}

function keyOf(owner: ChunkOwner, chunk: number): string {
  return `${owner.key}#${chunk}`;
}

function signalOf(orders: readonly Order[]): AbortSignal {
  return whenAllAborted(orders.map(({ signal }) => signal));
}

/** Damage in one blob must not take its neighbours along. */
function alone(span: Span, blob: WantedBlob): Span {
  const { directory } = span;
  return {
    ...span,
    offset: directory.offsetOf(blob.slot),
    length: directory.storedLength(blob.slot),
    blobs: [blob],
  };
}

/** A blob must be exactly as long as every chunk it stands for; only the disk's last chunk may be short. */
function checkLengths(owner: ChunkOwner, { pack, directory, blobs }: Span): void {
  for (const { slot, chunks } of blobs) {
    const rawLength = directory.rawLength(slot);
    const chunk = chunks.find((one) => owner.lengthOf(one) !== rawLength);
    if (chunk === undefined) continue;
    const message = `Slot ${slot} of pack ${pack} does not fit chunk ${chunk}`;
    throw new AppError("corrupt", "E_CHUNK_LENGTH", message, { pack, slot, rawLength });
  }
}
