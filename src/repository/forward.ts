import { hash } from "node:crypto";
import { ByteReader, ByteWriter } from "../bytes/cursor.ts";
import { MiB } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import { PackSize, type Repository } from "./config.ts";
import { encodePackPage, PACK_ENTRY_SIZE, packPageEntry } from "./layer.ts";
import { RunTable } from "./layer-runs.ts";
import { uuidBytes, uuidText } from "./names.ts";
import { directoryLength } from "./pack.ts";
import { type PackDirectory, type PackRef, SLOTS_MAX } from "./pack-directory.ts";
import { openDirectory } from "./stored-directory.ts";

/*
 * A forward (FORMAT.md, "Forwards"): the directory of a pack that was rewritten, and where its slots went.
 *
 *     0 magic "BLKHFWRD"   8 u16 version   10 6 B zero
 *    16 body, sealed:  pack 16 B, u32 slots, u64 bytes of blobs, the stored directory;
 *                      u32 targets, each as in a layer's pack table;
 *                      u32 runs, each as varints: slots not moved since the run before, slots - 1, target, slot there
 *       32 B SHA-256 of everything before
 */
const MAGIC = Buffer.from("BLKHFWRD", "latin1");
const VERSION = 1;
const HEADER_SIZE = 16;
const DIGEST_SIZE = 32;

/** Room for the largest directory, a target for each slot, and a run for each slot. */
export const FORWARD_MAX = 8 * MiB;

/** A pack that is no longer needed, with its directory as stored. */
export interface OldPack {
  readonly directory: PackDirectory;
  readonly storedDirectory: Buffer;
}

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
export interface Forward extends OldPack {
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
  old: OldPack,
  moves: Iterable<Move>,
): Buffer {
  const { directory, storedDirectory } = old;
  const { targets, runs } = joined(moves);
  const body = new ByteWriter()
    .bytes(uuidBytes(directory.pack))
    .u32(directory.slotCount)
    .u64(directory.blobBytes)
    .bytes(storedDirectory)
    .u32(targets.length)
    .bytes(encodePackPage(targets))
    .u32(runs.length);
  let end = 0;
  for (let run = 0; run < runs.length; run++) {
    body.varint(runs.first(run) - end).varint(runs.count(run) - 1);
    body.varint(runs.pack(run)).varint(runs.slot(run));
    end = runs.end(run);
  }
  const sealed = repository.sealer.sealObject("forward", key, body.finish());
  const header = new ByteWriter(HEADER_SIZE).bytes(MAGIC).u16(VERSION).bytes(Buffer.alloc(6)).finish();
  const object = Buffer.concat([header, sealed]);
  const bytes = Buffer.concat([object, hash("sha256", object, "buffer")]);
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
  if (bytes.length < HEADER_SIZE + DIGEST_SIZE) throw forwardError(what, "it is too short");
  const object = bytes.subarray(0, -DIGEST_SIZE);
  if (!hash("sha256", object, "buffer").equals(bytes.subarray(-DIGEST_SIZE))) {
    throw forwardError(what, "its checksum does not match");
  }
  const header = new ByteReader(object, what);
  if (!header.bytes(MAGIC.length).equals(MAGIC)) throw forwardError(what, "it does not begin like one");
  const version = header.u16();
  if (version !== VERSION) {
    const message = `The ${what} has version ${version}; update blockhaul to read it`;
    throw new AppError("usage", "E_FORWARD_VERSION", message);
  }
  if (!header.bytes(6).equals(Buffer.alloc(6))) throw forwardError(what, "it does not begin like one");
  const plain = repository.sealer.openObject("forward", key, object.subarray(HEADER_SIZE));
  const body = new ByteReader(plain, what);
  const old = decodeOldPack(repository, body, what);
  const targets = decodeTargets(body, old.directory, what);
  const runs = decodeRuns(body, old.directory, targets, what);
  body.end();
  return { ...old, ways: new Ways(targets, runs) };
}

function decodeOldPack(repository: Repository, body: ByteReader, what: string): OldPack {
  const pack = uuidText(body.bytes(16));
  const slotCount = body.u32();
  const blobBytes = body.u64();
  if (slotCount > SLOTS_MAX) throw forwardError(what, `a pack of ${slotCount} slots cannot be`);
  const storedDirectory = body.bytes(directoryLength(slotCount, repository.sealer.encrypted));
  return { directory: openDirectory(repository, pack, storedDirectory, blobBytes), storedDirectory };
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
