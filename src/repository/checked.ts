import { ByteWriter } from "../bytes/cursor.ts";
import { MiB } from "../bytes/size.ts";
import { AppError, hasCode } from "../errors.ts";
import type { Repository } from "./config.ts";
import { encodeFramed, type FramedKind, openFramed } from "./framed-object.ts";
import { checkedKey, newUuid, parseKey, Prefix, uuidBytes, uuidText } from "./names.ts";

/**
 * A page of the ledger of what was read (FORMAT.md, "Checked").
 *
 *     u32 runs; u32 packs; for each, ascending: pack 16 B, u32 run that read it last
 */
const LEDGER: FramedKind = {
  type: "checked",
  magic: "BLKHCHKD",
  version: 1,
  versionCode: "E_LEDGER_VERSION",
  damaged: ledgerError,
};

const ENTRY_SIZE = 20;
const OBJECT_MAX = 16 * MiB;

/** Packs in one object; a ledger of more is several. */
const PAGE_PACKS = 800_000;

const RUNS_MAX = 0xffff_fffe;

/** When each pack was last read by a verify. Memory grows with the packs in use. */
export interface Ledger {
  /** Runs that were done. The one that goes on now is the next. */
  readonly runs: number;
  /** By pack: the run that read it last; a pack that came since has the run before it was first seen. */
  readonly last: ReadonlyMap<string, number>;
}

/** A ledger as found, and the objects that it was found in. */
export interface StoredLedger extends Ledger {
  readonly keys: readonly string[];
}

/** @param key of the object that the bytes are for. @param entries ascending by pack. */
export function encodeLedgerPage(
  repository: Repository,
  key: string,
  runs: number,
  entries: readonly (readonly [string, number])[],
): Buffer {
  const body = new ByteWriter(8 + entries.length * ENTRY_SIZE).u32(runs).u32(entries.length);
  for (const [pack, last] of entries) body.bytes(uuidBytes(pack)).u32(last);
  return encodeFramed(repository, LEDGER, key, body.finish());
}

/** @throws AppError E_LEDGER, E_SEAL, E_TRUNCATED, E_TRAILING (corrupt), E_LEDGER_VERSION (usage). */
export function decodeLedgerPage(repository: Repository, key: string, bytes: Buffer): Ledger {
  const what = `ledger ${key}`;
  const body = openFramed(repository, LEDGER, key, bytes, what);
  const runs = body.u32();
  const packs = body.u32();
  if (runs > RUNS_MAX) throw ledgerError(what, `${runs} runs cannot be`);
  if (packs * ENTRY_SIZE !== body.remaining) throw ledgerError(what, "its length does not fit its packs");
  const last = new Map<string, number>();
  let before = "";
  for (let left = packs; left > 0; left--) {
    const pack = uuidText(body.bytes(16));
    const run = body.u32();
    if (pack <= before) throw ledgerError(what, "its packs are not in order");
    if (run > runs + 1) throw ledgerError(what, `it names run ${run} of ${runs}`);
    last.set(pack, run);
    before = pack;
  }
  return { runs, last };
}

function ledgerError(what: string, why: string): AppError {
  return new AppError("corrupt", "E_LEDGER", `The ${what} is damaged: ${why}`);
}

/**
 * The ledger of all verifies before. Several pages, and those of verifies that ran at the same time, are one: the later
 * run counts.
 *
 * @param onUnreadable told of each page that is damaged; what it says is lost, and those packs count as new.
 */
export async function readLedger(
  repository: Repository,
  signal: AbortSignal,
  onUnreadable: (error: AppError) => void,
): Promise<StoredLedger> {
  const keys: string[] = [];
  const last = new Map<string, number>();
  let runs = 0;
  for await (const { key } of repository.store.list(Prefix.checked, signal)) {
    if (parseKey(key)?.type !== "checked") continue;
    try {
      const page = decodeLedgerPage(repository, key, await repository.store.get(key, OBJECT_MAX, signal));
      runs = Math.max(runs, page.runs);
      for (const [pack, run] of page.last) last.set(pack, Math.max(run, last.get(pack) ?? 0));
    } catch (error) {
      if (hasCode(error, "E_NO_OBJECT")) continue; // superseded since it was listed
      if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
      onUnreadable(error);
    }
    keys.push(key);
  }
  return { runs, last, keys };
}

/**
 * Stores a ledger, and then deletes the objects that it stands for: a verify that is killed in between leaves both,
 * which say nothing against each other.
 */
export async function replaceLedger(
  repository: Repository,
  { runs, last }: Ledger,
  superseded: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  const entries = [...last].sort(([a], [b]) => (a < b ? -1 : 1));
  for (let at = 0; at === 0 || at < entries.length; at += PAGE_PACKS) {
    const key = checkedKey(newUuid());
    const page = encodeLedgerPage(repository, key, runs, entries.slice(at, at + PAGE_PACKS));
    await repository.store.put(key, page, signal);
  }
  if (superseded.length > 0) await repository.store.delete(superseded, signal);
}
