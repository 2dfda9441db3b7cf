import { AppError, hasCode } from "../../errors.ts";
import { drain, mapOrdered } from "../../flow/map-ordered.ts";
import { decodeLedgerPage } from "../../repository/checked.ts";
import type { Repository } from "../../repository/config.ts";
import { decodeDrill } from "../../repository/drills.ts";
import { decodeForgotten } from "../../repository/forgotten.ts";
import { decodeForward } from "../../repository/forward.ts";
import { decodeHold } from "../../repository/holds.ts";
import { decodeIndexObject } from "../../repository/index-objects.ts";
import { decodeKeySlot } from "../../repository/keys.ts";
import { parseKey, Prefix, type ObjectName } from "../../repository/names.ts";
import { decodeProfile } from "../../repository/profiles.ts";
import { decodeRecord } from "../../repository/record.ts";
import type { SealedType } from "../../repository/sealing.ts";
import { attempt, type Checked } from "./problems.ts";

/** Objects that no restore needs, but somebody does. Leases are left out: they are replaced all the time. */
const SIDE_PREFIXES = [
  Prefix.keys,
  Prefix.index,
  Prefix.runs,
  Prefix.condemned,
  Prefix.damaged,
  Prefix.checked,
  Prefix.holds,
  Prefix.forwards,
  Prefix.forgotten,
  Prefix.profiles,
] as const;

/** No object of these kinds is longer, in bytes: the largest is a condemned record. */
const OBJECT_MAX = 64 * 1024 * 1024;

/** Objects fetched at once. */
const GETS_MAX = 4;

/** An object that does not say what it was written to say. */
export interface Unreadable {
  readonly key: string;
  readonly name: ObjectName;
  readonly error: AppError;
  /** By the store's clock. */
  readonly lastModified: Date;
}

/** What it means that an object of a kind cannot be read, and what can be done. */
const MEANINGS: Readonly<Partial<Record<ObjectName["type"], string>>> = {
  key: "its password no longer opens the repository; add one with blockhaul key add while another does",
  index: "no generation needs it, but backups store again what it lists; blockhaul repair makes it anew",
  runBegin: "no generation needs it; blockhaul repair removes it when its run is over",
  runEnd: "no generation needs it; blockhaul repair removes it when its run is over",
  drill: "no generation needs it, and the drill counts for nothing; blockhaul repair removes it",
  condemned: "backups and prunes cannot work without it; blockhaul repair removes it when that is safe",
  damaged: "backups cannot work without it; blockhaul repair looks again which slots are bad",
  checked: "no generation needs it; the next verify that reads data writes it anew",
  forward:
    "what it leads to is not found through it; a verify that finds no loss beside it says that another does",
  forgotten: "its generation cannot be brought back; a prune removes it when the grace is over",
  profile: "no generation needs it, but serve has nothing to read ahead by; the next serve writes it anew",
  hold: "its generation is held all the same; blockhaul repair writes it anew",
};

/** For people: what is wrong with it, and what that means. */
export function unreadableMessage({ name, error }: Unreadable): string {
  const meaning = MEANINGS[name.type];
  return meaning === undefined ? error.message : `${error.message}: ${meaning}`;
}

/**
 * Reads every object besides manifests, layers, packs and leases. Memory is that of a few objects.
 * @returns those that could not be read, twice.
 */
export async function checkSideObjects(repository: Repository, run: AbortController): Promise<Unreadable[]> {
  const found: Unreadable[] = [];
  for (const prefix of SIDE_PREFIXES) {
    const listed = repository.store.list(prefix, run.signal);
    const checks = mapOrdered(listed, GETS_MAX, run, async ({ key, lastModified }, signal) => {
      const name = parseKey(key);
      if (name === undefined) return; // not the repository's
      const check = (): Promise<void> => checkObject(repository, key, name, signal);
      const first = await attempt(check, signal);
      const { damage: error }: Checked<void> =
        first.damage === undefined ? first : await attempt(check, signal);
      // a slot that an init left which lost its race belongs to nothing (FORMAT.md, "Keys")
      if (error === undefined || (name.type === "key" && error.code === "E_MISPLACED")) return;
      found.push({ key, name, error, lastModified });
    });
    await drain(checks);
  }
  return found;
}

async function checkObject(
  repository: Repository,
  key: string,
  name: ObjectName,
  signal: AbortSignal,
): Promise<void> {
  let bytes: Buffer;
  try {
    bytes = await repository.store.get(key, OBJECT_MAX, signal);
  } catch (error) {
    if (hasCode(error, "E_NO_OBJECT")) return; // deleted since it was listed
    throw error;
  }
  checkBytes(repository, key, name, bytes);
}

/** @throws AppError (corrupt), or E_…_VERSION (usage) for what a newer program wrote. */
function checkBytes(repository: Repository, key: string, name: ObjectName, bytes: Buffer): void {
  const { type } = name;
  if (type === "key") decodeKeySlot(bytes, repository.config.repository, name.id);
  else if (type === "index") readToEnd(decodeIndexObject(repository, key, bytes));
  else if (type === "checked") decodeLedgerPage(repository, key, bytes);
  else if (type === "hold") decodeHold(repository, name.source, name.generation, bytes);
  else if (type === "forward") decodeForward(repository, key, bytes);
  else if (type === "forgotten") decodeForgotten(repository, name.source, name.generation, bytes);
  else if (type === "profile") decodeProfile(repository, name.source, name.profile, bytes);
  else if (type === "drill") decodeDrill(repository, name.source, name.drill, bytes);
  else if (type === "condemned" || type === "damaged") checkRecordBytes(repository, type, key, bytes);
  else if (type === "runBegin" || type === "runEnd") checkRecordBytes(repository, "run", key, bytes);
}

function checkRecordBytes(repository: Repository, type: SealedType, key: string, bytes: Buffer): void {
  decodeRecord(repository.sealer.openObject(type, key, bytes), `record ${key}`);
}

/** One decoded thing after the other, for the sake of the checks. */
function readToEnd(items: Iterator<unknown>): void {
  while (items.next().done !== true);
}
