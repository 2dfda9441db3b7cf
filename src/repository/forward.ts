import { type ByteReader, ByteWriter } from "../bytes/cursor.ts";
import { MiB } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import { PackSize, type Repository } from "./config.ts";
import { encodeFramed, type FramedKind, openFramed } from "./framed-object.ts";
import { encodePackPage, PACK_ENTRY_SIZE, packPageEntry } from "./layer.ts";
import { RunTable } from "./layer-runs.ts";
import { type PackDirectory, type PackRef, SLOTS_MAX } from "./pack-directory.ts";
import { readStoredDirectory, type StoredDirectory, writeStoredDirectory } from "./stored-directory.ts";

/**
 * A forward (FORMAT.md, "Forwards"): the directory of a pack that was rewritten, and where its slots went.
 *
 *     pack 16 B, u32 slots, u64 bytes of blobs, the stored directory;
 *     u32 targets, each as in a layer's pack table;
 *     u32 runs, each as varints: slots not moved since the run before, slots - 1, target, slot there
 */
const FORWARD: FramedKind = {
  type: "forward",
  magic: "BLKHFWRD",
  version: 1,
  versionCode: "E_FORWARD_VERSION",
  damaged: forwardError,
};

/** Room for the largest directory, a target for each slot, and a run for each slot. */
export const FORWARD_MAX = 8 * MiB;

/** One slot's way. */
export interface Move {
  /** In the old pack. */
  readonly slot: number;
  readonly target: PackRef;
  /** The slot in the target. */
  readonly to: number;
}

/** Where slots went: a few bytes a run, for whoever keeps many. */
export class Ways {
  readonly targets: readonly PackRef[];
  readonly #runs: RunTable;

  constructor(targets: readonly PackRef[], runs: RunTable) {
    this.targets = targets;
    this.#runs = runs;
  }

  /** Memory held, in bytes. */
  get memoryBytes(): number {
    return this.targets.length * 300 + this.#runs.weight;
  }

  /** Where a slot went; undefined when this forward does not know. */
  placeOf(slot: number): { readonly target: PackRef; readonly slot: number } | undefined {
    const run = this.#runs.find(slot);
    if (run === this.#runs.length || this.#runs.first(run) > slot) return undefined;
    const moved = this.#runs.slot(run) + slot - this.#runs.first(run);
    return { target: this.targets[this.#runs.pack(run)]!, slot: moved };
  }

  /** Every slot that moved, ascending. */
  *moves(): Generator<Move, void> {
    for (let run = 0; run < this.#runs.length; run++) {
      const target = this.targets[this.#runs.pack(run)]!;
      for (let index = 0; index < this.#runs.count(run); index++) {
        yield { slot: this.#runs.first(run) + index, target, to: this.#runs.slot(run) + index };
      }
    }
  }
}

/** What a forward says. Every number was checked against the directories' sizes; that these are true was not (R10). */
export interface Forward extends StoredDirectory {
  readonly ways: Ways;
}

/**
 * The stored form; read back before it is returned.
 *
 * @param key of the object that the bytes are for.
 * @param moves 1 or more, in ascending order of slots.
 * @throws AppError E_FORWARD (corrupt) for moves that cannot be.
 */
export function encodeForward(
  repository: Repository,
  key: string,
  old: StoredDirectory,
  moves: Iterable<Move>,
): Buffer {
  const { targets, runs } = joined(moves);
  const body = writeStoredDirectory(new ByteWriter(), old)
    .u32(targets.length)
    .bytes(encodePackPage(targets))
    .u32(runs.length);
  let end = 0;
  for (let run = 0; run < runs.length; run++) {
    body.varint(runs.first(run) - end).varint(runs.count(run) - 1);
    body.varint(runs.pack(run)).varint(runs.slot(run));
    end = runs.end(run);
  }
  const bytes = encodeFramed(repository, FORWARD, key, body.finish());
  decodeForward(repository, key, bytes);
  return bytes;
}

/** Slots that follow each other into slots that follow each other are one run. */
function joined(moves: Iterable<Move>): { targets: PackRef[]; runs: RunTable } {
  const numbers = new Map<string, number>();
  const targets: PackRef[] = [];
  const runs = new RunTable(64);
  for (const { slot, target, to } of moves) {
    let number = numbers.get(target.pack);
    if (number === undefined) {
      number = targets.push(target) - 1;
      numbers.set(target.pack, number);
    }
    const last = runs.length - 1;
    const follows =
      last >= 0 &&
      runs.end(last) === slot &&
      runs.pack(last) === number &&
      runs.slot(last) + runs.count(last) === to;
    if (follows) runs.extend(1);
    else runs.push(slot, 1, number, to);
  }
  return { targets, runs };
}

/**
 * @param key that the object was found under.
 * @throws AppError E_FORWARD, E_SEAL, E_PACK_DIRECTORY, E_TRUNCATED, E_TRAILING, E_VARINT, E_TOO_LARGE (corrupt),
 *   E_FORWARD_VERSION (usage).
 */
export function decodeForward(repository: Repository, key: string, bytes: Buffer): Forward {
  const what = `forward ${key}`;
  const body = openFramed(repository, FORWARD, key, bytes, what);
  const old = readStoredDirectory(repository, body, (why) => forwardError(what, why));
  const targets = decodeTargets(body, old.directory, what);
  const runs = decodeRuns(body, old.directory, targets, what);
  body.end();
  return { ...old, ways: new Ways(targets, runs) };
}

function decodeTargets(body: ByteReader, old: PackDirectory, what: string): PackRef[] {
  const count = body.u32();
  if (count < 1 || count > old.slotCount) throw forwardError(what, `${count} targets cannot be`);
  const page = body.bytes(count * PACK_ENTRY_SIZE);
  const targets: PackRef[] = [];
  for (let index = 0; index < count; index++) {
    const target = packPageEntry(page, index, what);
    const { slotCount, blobBytes } = target;
    if (slotCount < 1 || slotCount > SLOTS_MAX || blobBytes < 1 || blobBytes > PackSize.max)
      throw forwardError(what, `a target of ${slotCount} slots and ${blobBytes} bytes cannot be`);
    if (target.pack === old.pack) throw forwardError(what, "it leads to its own pack");
    targets.push(target);
  }
  return targets;
}

function decodeRuns(
  body: ByteReader,
  old: PackDirectory,
  targets: readonly PackRef[],
  what: string,
): RunTable {
  const count = body.u32();
  if (count < targets.length || count > old.slotCount) throw forwardError(what, `${count} runs cannot be`);
  const runs = new RunTable(count);
  let end = 0;
  for (let run = 0; run < count; run++) {
    const first = end + body.varint();
    const slots = body.varint() + 1;
    const number = body.varint();
    const slot = body.varint();
    const target = targets[number];
    if (first + slots > old.slotCount)
      throw forwardError(what, "a run names slots that the pack does not have");
    if (target === undefined) throw forwardError(what, "a run names a target that is not there");
    if (slot + slots > target.slotCount)
      throw forwardError(what, "a run names slots that its target does not have");
    runs.push(first, slots, number, slot);
    end = first + slots;
  }
  return runs;
}

export function forwardError(what: string, why: string): AppError {
  return new AppError("corrupt", "E_FORWARD", `The ${what} is damaged: ${why}`);
}
