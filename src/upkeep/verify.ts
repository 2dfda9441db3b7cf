import type { Repository } from "../repository/config.ts";
import { readDamaged } from "../repository/damaged.ts";
import { listGenerationNames } from "../repository/generations.ts";
import type { Manifest } from "../repository/manifest.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { adviceOn } from "./verify/advice.ts";
import { Losses, type Loss } from "./verify/losses.ts";
import { MapCheck } from "./verify/maps.ts";
import { lostOnTheWay, readPacks } from "./verify/packs.ts";
import { Problems, type Problem } from "./verify/problems.ts";
import { checkSideObjects, unreadableMessage } from "./verify/side-objects.ts";
import { SlotFindings } from "./verify/slots.ts";
import { Turns } from "./verify/turns.ts";
import type { UsedPack } from "./verify/used-packs.ts";

export type { Loss } from "./verify/losses.ts";
export type { Problem } from "./verify/problems.ts";

export interface VerifyRequest {
  readonly manifests: readonly Manifest[];
  /** What is wrong with generations that could not be loaded. */
  readonly found: readonly Problem[];
  /** True when these are all generations there are. */
  readonly complete: boolean;
  /** 0 to 100: how many of the packs in use are read; those whose turn it is, by the ledger of the runs before. */
  readonly readPercent: number;
  /** Goes on with what a run that was stopped began: what that one has read counts, and is not read again. */
  readonly continued?: boolean;
  /** False: nothing is written, neither what is bad nor what was read. */
  readonly record: boolean;
  /** Told in a sentence what could not be done besides the check. */
  readonly warn: (message: string) => void;
  readonly progress: (done: number, total: number) => void;
}

export interface VerifyReport {
  readonly generations: number;
  readonly packs: number;
  readonly packsRead: number;
  /** Slots that the generations use, and how many of them were read and are right. */
  readonly chunks: number;
  readonly chunksRead: number;
  /** Stored bytes read. */
  readonly bytesRead: number;
  readonly problems: readonly Problem[];
  /** Problems that are counted but not listed. */
  readonly problemsLeftOut: number;
  /** What cannot be restored, by generation and disk. */
  readonly losses: readonly Loss[];
  /** What can be done about the losses, a sentence for each source. */
  readonly advice: readonly string[];
  /** Bad slots in use: found by this run, or recorded by an earlier one and not read now. */
  readonly slotsBad: number;
  /** Those that this run recorded under `damaged/`. */
  readonly slotsRecorded: number;
  /** Slots recorded as damaged that this run read, and are right. */
  readonly slotsHealed: number;
  /** Checks that failed once and went well the second time. */
  readonly transient: number;
}

/**
 * Checks generations: manifest, layers and directories are the ones their digests name, every address leads to a
 * slot of the right length, and, for `readPercent` of the packs, every blob in use opens to bytes with the right id.
 *
 * A problem is noted and the rest is checked all the same. Bad slots are recorded (R12), when the repository may be
 * written, so that no backup takes them for duplicates and the next one stores their chunks again.
 */
export async function verify(
  request: VerifyRequest,
  tools: ReadTools,
  run: AbortController,
): Promise<VerifyReport> {
  const { manifests } = request;
  const { signal } = run;
  const problems = new Problems();
  for (const problem of request.found) problems.add(problem, problem.generations);
  const known = await readDamaged(tools.repository, signal, () => undefined); // told with the side objects
  if (request.complete) await checkSides(request, tools.repository, problems, run);
  const losses = new Losses();
  const maps = new MapCheck(tools, problems, losses);
  for (const manifest of manifests)
    for (const disk of manifest.disks) await maps.disk(manifest, disk, signal);

  const slots = new SlotFindings(tools, known, request);
  const packs = [...maps.used.values()];
  for (const pack of packs) {
    if (maps.lostPacks.has(pack.packRef.pack)) {
      await slots.found(pack, pack.slots(), signal);
      continue;
    }
    const lost = await lostOnTheWay(pack, tools, problems, signal);
    if (lost.length > 0) await slots.found(pack, lost, signal);
  }
  const read = await readTurns(request, packs, maps.lostPacks, tools, problems, slots, run);
  const bad = slots.bad(packs);
  noteKnown(packs, bad, slots, problems);
  await maps.lose(manifests, bad, signal);

  const isThere = await whoIsThere(tools.repository, manifests, losses, signal);
  const lost = losses.list(isThere);
  return {
    generations: manifests.length,
    packs: packs.length,
    packsRead: read.packs,
    chunks: packs.reduce((sum, pack) => sum + pack.slotCount, 0),
    chunksRead: read.chunks,
    bytesRead: read.bytes,
    problems: problems.list(isThere),
    problemsLeftOut: problems.leftOut,
    losses: lost,
    advice: adviceOn(lost, manifests),
    slotsBad: [...bad.values()].reduce((sum, pack) => sum + pack.size, 0),
    slotsRecorded: slots.recorded,
    slotsHealed: slots.healed,
    transient: problems.transient,
  };
}

/** What stands besides the generations, for the whole repository only. */
async function checkSides(
  { readPercent }: VerifyRequest,
  repository: Repository,
  problems: Problems,
  run: AbortController,
): Promise<void> {
  for (const one of await checkSideObjects(repository, run)) {
    if (one.name.type === "checked" && readPercent > 0) continue; // told, and replaced, when it is used
    problems.add({ message: unreadableMessage(one), code: one.error.code }, []);
  }
}

interface ReadCounts {
  packs: number;
  chunks: number;
  bytes: number;
}

/** Reads the packs whose turn it is, and keeps the ledger; also of a run that is stopped. */
async function readTurns(
  request: VerifyRequest,
  packs: readonly UsedPack[],
  lost: ReadonlyMap<string, unknown>,
  tools: ReadTools,
  problems: Problems,
  slots: SlotFindings,
  run: AbortController,
): Promise<ReadCounts> {
  const counts: ReadCounts = { packs: 0, chunks: 0, bytes: 0 };
  if (request.readPercent === 0) return counts;
  const turns = await Turns.begin(tools.repository, request, run.signal);
  const there = packs.filter(({ packRef }) => !lost.has(packRef.pack));
  const chosen = turns.choose(there, request.readPercent);
  try {
    await readPacks(chosen, tools, problems, run, async ({ pack, bad, chunks, bytes }) => {
      await slots.found(pack, bad, run.signal);
      turns.read(pack);
      counts.chunks += chunks;
      counts.bytes += bytes;
      request.progress(++counts.packs, chosen.length);
    });
  } catch (error) {
    await turns.end(packs, false).catch(() => undefined); // the failure itself is what the user must hear
    throw error;
  }
  await turns.end(packs, request.complete);
  return counts;
}

/** What earlier runs recorded is a problem still, as long as it is in use and was not read now. */
function noteKnown(
  packs: readonly UsedPack[],
  bad: ReadonlyMap<string, { readonly size: number }>,
  slots: SlotFindings,
  problems: Problems,
): void {
  for (const { packRef, generations } of packs) {
    const size = bad.get(packRef.pack)?.size;
    if (size === undefined || slots.hasLooked(packRef.pack)) continue;
    const message = `Pack ${packRef.pack} is recorded as damaged at ${size} of its slots`;
    problems.add({ message, code: "E_KNOWN_DAMAGE" }, generations);
  }
}

/**
 * Generations may be forgotten, and their packs collected, while they are checked: what is missing for them alone is no
 * damage. Costs a LIST when there is anything to tell.
 */
async function whoIsThere(
  repository: Repository,
  checked: readonly Manifest[],
  losses: Losses,
  signal: AbortSignal,
): Promise<(generation: string) => boolean> {
  if (losses.empty) return () => true;
  const names = await listGenerationNames(repository, undefined, signal);
  const there = new Set(names.map(({ generation }) => generation));
  const gone = checked.filter(({ generation }) => !there.has(generation));
  const forgotten = new Set(gone.map(({ generation }) => generation));
  return (generation) => !forgotten.has(generation);
}
