import { AppError } from "../errors.ts";
import type { Repository } from "../repository/config.ts";
import { readDamaged, recordDamaged, type DamagedSlots } from "../repository/damaged.ts";
import { listGenerationNames } from "../repository/generations.ts";
import type { Manifest } from "../repository/manifest.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { adviceOn } from "./verify/advice.ts";
import { Losses, type Loss } from "./verify/losses.ts";
import { MapCheck, type BadSlots } from "./verify/maps.ts";
import { lostOnTheWay, readPacks } from "./verify/packs.ts";
import { attempt, Problems, type Problem } from "./verify/problems.ts";
import type { UsedPack } from "./verify/used-packs.ts";

export type { Loss } from "./verify/losses.ts";
export type { Problem } from "./verify/problems.ts";

export interface VerifyRequest {
  readonly manifests: readonly Manifest[];
  /** What is wrong with generations that could not be loaded. */
  readonly found: readonly Problem[];
  /** 0 to 100: how many of the packs in use are read. */
  readonly readPercent: number;
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
  const known = await readDamaged(tools.repository, signal, (error) => problems.add(error, []));
  const losses = new Losses();
  const maps = new MapCheck(tools, problems, losses);
  for (const manifest of manifests)
    for (const disk of manifest.disks) await maps.disk(manifest, disk, signal);

  const slots = new SlotFindings(tools, known, request.warn);
  const packs = [...maps.used.values()];
  for (const pack of packs) {
    if (maps.lostPacks.has(pack.packRef.pack)) {
      await slots.found(pack, pack.slots(), signal);
      continue;
    }
    const lost = await lostOnTheWay(pack, tools, problems, signal);
    if (lost.length > 0) await slots.found(pack, lost, signal);
  }
  const chosen = packs.filter(
    ({ packRef }) => !maps.lostPacks.has(packRef.pack) && Math.random() * 100 < request.readPercent,
  );
  const read = { packs: 0, chunks: 0, bytes: 0 };
  await readPacks(chosen, tools, problems, run, async ({ pack, bad, chunks, bytes }) => {
    await slots.found(pack, bad, signal);
    read.chunks += chunks;
    read.bytes += bytes;
    request.progress(++read.packs, chosen.length);
  });
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

/** What is known of bad slots: by this run, where it has looked, and else by earlier ones. */
class SlotFindings {
  recorded = 0;
  healed = 0;
  readonly #tools: ReadTools;
  readonly #known: DamagedSlots;
  readonly #warn: (message: string) => void;
  readonly #looked = new Map<string, ReadonlySet<number>>();
  #readOnly = false;

  constructor(tools: ReadTools, known: DamagedSlots, warn: (message: string) => void) {
    this.#tools = tools;
    this.#known = known;
    this.#warn = warn;
  }

  /** True when a run has looked at this pack now. */
  hasLooked(pack: string): boolean {
    return this.#looked.has(pack);
  }

  /** All used slots of a pack have been looked at; these are bad. */
  async found(pack: UsedPack, bad: readonly number[], signal: AbortSignal): Promise<void> {
    const { pack: id } = pack.packRef;
    const known = this.#known.get(id);
    const slots = new Set(bad);
    this.#looked.set(id, slots);
    for (const slot of known ?? []) if (pack.has(slot) && !slots.has(slot)) this.healed++;
    const news = bad.filter((slot) => known?.has(slot) !== true);
    if (news.length === 0 || this.#readOnly) return;
    try {
      await recordDamaged(this.#tools.repository, id, news, signal);
      this.recorded += news.length;
      for (const slot of news) await this.#recordWhereItLies(pack, slot, signal);
    } catch (error) {
      if (!(error instanceof AppError) || (error.kind !== "credentials" && error.kind !== "full"))
        throw error;
      this.#readOnly = true;
      this.#warn(
        `What is bad could not be recorded, so backups will go on using it: ${error.message}; ` +
          "run verify with a credential that may write",
      );
    }
  }

  /** Of a pack that was rewritten the blob lies in another, which must not serve as a duplicate either. */
  async #recordWhereItLies({ packRef }: UsedPack, slot: number, signal: AbortSignal): Promise<void> {
    const { repository, directories } = this.#tools;
    if (!directories.isGone(packRef.pack)) return;
    const { value: places } = await attempt(() => directories.places(packRef, [slot], signal), signal);
    const place = places?.get(slot);
    if (place !== undefined) await recordDamaged(repository, place.directory.pack, [place.slot], signal);
  }

  /** The bad ones among the used, by pack. */
  bad(packs: readonly UsedPack[]): Map<string, BadSlots & { readonly size: number }> {
    const bad = new Map<string, ReadonlySet<number>>();
    for (const pack of packs) {
      const { pack: id } = pack.packRef;
      const known = [...(this.#known.get(id) ?? [])].filter(
        (slot) => slot < pack.packRef.slotCount && pack.has(slot),
      );
      const slots = this.#looked.get(id) ?? new Set(known);
      if (slots.size > 0) bad.set(id, slots);
    }
    return bad;
  }
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
