import { z } from "zod";
import { KiB } from "../bytes/size.ts";
import { AppError, hasCode } from "../errors.ts";
import { pause } from "../flow/retry.ts";
import type { Repository } from "./config.ts";
import { name, shortText, uuid } from "./fields.ts";
import { Prefix, checkSourceName, leaseKey, parseKey } from "./names.ts";
import { encodeRecord, parseRecord } from "./record.ts";

/** A lease is never larger, in bytes as stored. */
const LEASE_SIZE_MAX = 16 * KiB;

/** How often a rival that is still deciding is looked at, before we step back. */
const LOOKS_MAX = 20;

/** LIST may cut times to whole seconds. */
export const LIST_GRAIN_MS = 1000;

const leaseSchema = z
  .strictObject({
    format: z.literal(1),
    repository: uuid,
    source: name,
    run: uuid,
    /** `claim`: wants to write; `held`: has looked around and writes. */
    state: z.enum(["claim", "held"]),
    host: shortText,
    pid: z.int().nonnegative(),
    /** Milliseconds after the object's last write at which it counts no more. */
    ttlMs: z.int().min(1),
  })
  .readonly();

export type LeaseRecord = z.infer<typeof leaseSchema>;

/** Who holds a lease, as the lease tells it. */
export type LeaseHolder = Pick<LeaseRecord, "host" | "pid">;

/** Times in milliseconds. */
export interface LeaseOptions {
  readonly holder: LeaseHolder;
  /** True for a holder that surely runs no more: a process of this machine that is gone. */
  readonly isGone: (holder: LeaseHolder) => boolean;
  /** A holder that was not heard of for so long is taken for dead. */
  readonly ttlMs: number;
  /** How often it is renewed; a small part of `ttlMs`. */
  readonly heartbeatMs: number;
  /** Pause between two looks at a rival that is still deciding. */
  readonly settleMs: number;
}

export const DEFAULT_LEASE = { ttlMs: 120_000, heartbeatMs: 30_000, settleMs: 250 } as const;

/** Another run's lease, as it counts now. */
interface Rival {
  readonly record: LeaseRecord;
  readonly key: string;
  readonly expires: Date;
  readonly live: boolean;
}

/**
 * Becomes the only writer of a source (R20; FORMAT.md, "Leases", has the protocol and why it holds).
 *
 * @param run UUIDv7 of this run; the lower of two runs that come at the same time wins.
 * @throws AppError E_LOCKED (locked), which names the holder and when its lease ends; nothing of ours is left then.
 */
export async function acquireLease(
  repository: Repository,
  source: string,
  run: string,
  options: LeaseOptions,
  signal: AbortSignal,
): Promise<Lease> {
  const lease = new Lease(repository, checkSourceName(source), run, options);
  try {
    await lease.acquire(signal);
    return lease;
  } catch (error) {
    await lease.release();
    throw error;
  }
}

/** The right to write one source, renewed in the background until it is released. */
export class Lease {
  readonly source: string;
  readonly run: string;
  readonly #repository: Repository;
  readonly #options: LeaseOptions;
  readonly #key: string;
  readonly #stop = new AbortController();
  #beating: Promise<void> = Promise.resolve();
  /** Local time before the last write that succeeded, milliseconds of a clock that only runs forward. */
  #writtenAt = -Infinity;

  constructor(repository: Repository, source: string, run: string, options: LeaseOptions) {
    this.source = source;
    this.run = run;
    this.#repository = repository;
    this.#options = options;
    this.#key = leaseKey(source, run);
  }

  /** Part of `acquireLease`. */
  async acquire(signal: AbortSignal): Promise<void> {
    await this.#write("claim", signal);
    const others = (await this.#look(signal)).rivals;
    const ahead = others.find(
      ({ live, record }) => live && (record.state === "held" || record.run < this.run),
    );
    if (ahead !== undefined) throw this.#lockedError(ahead);
    await this.#write("held", signal);
    await this.#outwait(signal);
    if (this.#hasExpired()) throw this.#lostError("the store answered too slowly");
    const dead = others.filter(({ live }) => !live).map(({ key }) => key);
    if (dead.length > 0) await this.#repository.store.delete(dead, signal);
    this.#beating = this.#beat();
  }

  /**
   * Makes sure, right before a commit, that this run still is the only writer.
   * @throws AppError E_LEASE_LOST (locked): nothing may be committed.
   */
  async check(signal: AbortSignal): Promise<void> {
    for (let look = 1; ; look++) {
      const { rivals, own } = await this.#look(signal);
      const holders = rivals.filter(({ live, record }) => live && record.state === "held");
      // One with a higher run that came while we were deciding is about to step back.
      const stays = look === LOOKS_MAX ? holders[0] : holders.find(({ record }) => record.run < this.run);
      if (stays !== undefined) throw this.#lostError(`${nameOf(stays.record)} took over`);
      if (this.#hasExpired()) throw this.#lostError("it could not be renewed in time");
      if (!own) throw this.#lostError("another run took it for dead");
      if (holders.length === 0) return;
      await pause(this.#options.settleMs, signal);
    }
  }

  /** Gives the lease back. Never throws: what cannot be removed expires. Safe to call twice. */
  async release(): Promise<void> {
    this.#stop.abort(new AppError("cancelled", "E_STOPPED", "The lease was given back"));
    await this.#beating;
    this.#writtenAt = -Infinity;
    const limit = AbortSignal.timeout(Math.min(this.#options.ttlMs, DEFAULT_LEASE.heartbeatMs));
    await this.#repository.store.delete([this.#key], limit).catch(() => undefined);
  }

  #hasExpired(): boolean {
    return performance.now() - this.#writtenAt >= this.#options.ttlMs;
  }

  /** Waits for rivals with lower runs to decide: whoever of us saw whose claim, the lower one stays. */
  async #outwait(signal: AbortSignal): Promise<void> {
    for (let look = 1; ; look++) {
      const { rivals } = await this.#look(signal);
      const ahead = rivals.filter(({ live, record }) => live && record.run < this.run);
      const holder =
        ahead.find(({ record }) => record.state === "held") ?? (look < LOOKS_MAX ? undefined : ahead[0]);
      if (holder !== undefined) throw this.#lockedError(holder);
      if (ahead.length === 0) return;
      await pause(this.#options.settleMs, signal);
    }
  }

  /** Renews until released. A failed beat is not yet a loss: the next may succeed, and `check` has the last word. */
  async #beat(): Promise<void> {
    const { signal } = this.#stop;
    for (;;) {
      await pause(this.#options.heartbeatMs, signal).catch(() => undefined);
      // A lease that has expired is never renewed: somebody else may have it now.
      if (signal.aborted || this.#hasExpired()) return;
      const leftMs = this.#options.ttlMs - (performance.now() - this.#writtenAt);
      const inTime = AbortSignal.any([signal, AbortSignal.timeout(Math.max(1, Math.floor(leftMs)))]);
      await this.#write("held", inTime).catch(() => undefined);
    }
  }

  async #write(state: LeaseRecord["state"], signal: AbortSignal): Promise<void> {
    const { config, sealer, store } = this.#repository;
    const { holder, ttlMs } = this.#options;
    const record: LeaseRecord = {
      format: 1,
      repository: config.repository,
      source: this.source,
      run: this.run,
      state,
      host: holder.host,
      pid: holder.pid,
      ttlMs,
    };
    const begun = performance.now();
    await store.replace(this.#key, sealer.sealObject("lease", this.#key, encodeRecord(record)), signal);
    this.#writtenAt = begun;
  }

  /** The leases of this source: the others', and whether ours is there. */
  async #look(signal: AbortSignal): Promise<{ rivals: Rival[]; own: boolean }> {
    const { store } = this.#repository;
    const rivals: Rival[] = [];
    let own = false;
    for await (const { key, lastModified } of store.list(`${Prefix.leases}${this.source}/`, signal)) {
      const parsed = parseKey(key);
      if (parsed?.type !== "lease") continue;
      if (parsed.run === this.run) {
        own = true;
        continue;
      }
      const record = await readLease(this.#repository, this.source, parsed.run, this.#options.ttlMs, signal);
      if (record === undefined) continue;
      const expires = expiryOf(record, lastModified);
      const live = expires > (await store.now(signal)) && !this.#options.isGone(record);
      rivals.push({ record, key, expires, live });
    }
    return { rivals, own };
  }

  #lockedError({ record, expires }: Rival): AppError {
    return new AppError(
      "locked",
      "E_LOCKED",
      `${this.source} is being written by ${nameOf(record)}, run ${record.run}; wait for it, or until ${expires.toISOString()} if it died`,
      {
        source: this.source,
        run: record.run,
        host: record.host,
        pid: record.pid,
        expires: expires.toISOString(),
      },
    );
  }

  #lostError(why: string): AppError {
    const message = `The run lost its lease on ${this.source}: ${why}; run it again`;
    return new AppError("locked", "E_LEASE_LOST", message, { source: this.source, run: this.run });
  }
}

/** Until when a lease counts that was last written at `lastModified`; both by the store's clock. */
function expiryOf({ ttlMs }: LeaseRecord, lastModified: Date): Date {
  return new Date(lastModified.getTime() + ttlMs + LIST_GRAIN_MS);
}

/** Undefined for one that is gone meanwhile. One that cannot be read counts as held until it expires. */
async function readLease(
  { config, sealer, store }: Repository,
  source: string,
  run: string,
  ttlMs: number,
  signal: AbortSignal,
): Promise<LeaseRecord | undefined> {
  const key = leaseKey(source, run);
  try {
    const stored = await store.get(key, LEASE_SIZE_MAX, signal);
    const record = parseRecord(leaseSchema, sealer.openObject("lease", key, stored), `lease ${key}`);
    if (record.run === run && record.source === source) return record;
  } catch (error) {
    if (hasCode(error, "E_NO_OBJECT")) return undefined;
    if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
  }
  const host = "an unreadable lease";
  return { format: 1, repository: config.repository, source, run, state: "held", host, pid: 0, ttlMs };
}

/** The runs that hold, or claim, a source at this moment; for those who do not want it themselves. */
export async function liveLeases(
  repository: Repository,
  source: string,
  isGone: LeaseOptions["isGone"],
  signal: AbortSignal,
): Promise<ReadonlySet<string>> {
  const { store } = repository;
  const live = new Set<string>();
  for await (const { key, lastModified } of store.list(`${Prefix.leases}${source}/`, signal)) {
    const parsed = parseKey(key);
    if (parsed?.type !== "lease") continue;
    const record = await readLease(repository, source, parsed.run, DEFAULT_LEASE.ttlMs, signal);
    if (record === undefined || isGone(record)) continue;
    if (expiryOf(record, lastModified) > (await store.now(signal))) live.add(parsed.run);
  }
  return live;
}

function nameOf({ host, pid }: LeaseRecord): string {
  return pid === 0 ? host : `process ${pid} on ${host}`;
}
