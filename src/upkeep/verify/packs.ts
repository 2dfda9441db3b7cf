import { SlabPool } from "../../chunk/slabs.ts";
import { hasCode } from "../../errors.ts";
import { drain, mapOrdered } from "../../flow/map-ordered.ts";
import { packKey } from "../../repository/names.ts";
import { checkPackHeader, PACK_HEADER_SIZE } from "../../repository/pack.ts";
import type { PackDirectory } from "../../repository/pack-directory.ts";
import type { ReadTools } from "../../repository/read-tools.ts";
import { openSpan } from "../../restore/open-span.ts";
import { GETS, SPAN_LIMITS, spans, type Span } from "../../restore/spans.ts";
import { attempt, type Problems } from "./problems.ts";
import type { UsedPack } from "./used-packs.ts";

/** What reading a pack brought. */
export interface PackRead {
  readonly pack: UsedPack;
  /** Used slots that do not hold what was stored, ascending: each was read twice. */
  readonly bad: readonly number[];
  readonly chunks: number;
  /** Stored bytes of the requests that went well. */
  readonly bytes: number;
}

/**
 * Reads every used slot of packs: CRC, seal, decompression and chunk id of each blob, and the pack's header. A stretch
 * that does not open is read again slot by slot, so that exactly the bad ones are told.
 *
 * @param onRead awaited for each pack once it was read, in no particular order.
 */
export async function readPacks(
  packs: readonly UsedPack[],
  tools: ReadTools,
  problems: Problems,
  run: AbortController,
  onRead: (read: PackRead) => Promise<void>,
): Promise<void> {
  const slabs = {
    stored: new SlabPool(SPAN_LIMITS.storedMax, GETS),
    raw: new SlabPool(SPAN_LIMITS.rawMax, GETS),
  };
  const reader = new PackReader(tools, problems, slabs);
  await drain(mapOrdered(packs, GETS, run, async (pack, signal) => onRead(await reader.read(pack, signal))));
}

class PackReader {
  readonly #tools: ReadTools;
  readonly #problems: Problems;
  readonly #slabs: Parameters<typeof openSpan>[2];

  constructor(tools: ReadTools, problems: Problems, slabs: Parameters<typeof openSpan>[2]) {
    this.#tools = tools;
    this.#problems = problems;
    this.#slabs = slabs;
  }

  async read(pack: UsedPack, signal: AbortSignal): Promise<PackRead> {
    const { packRef, generations } = pack;
    const slots = pack.slots();
    const directory = await this.#problems.noting(generations, signal, () =>
      this.#tools.directories.get(packRef, signal),
    );
    if (directory === undefined) return { pack, bad: slots, chunks: 0, bytes: 0 };
    await this.#problems.noting(generations, signal, () => this.#checkHeader(packRef.pack, signal));
    const bad: number[] = [];
    let bytes = 0;
    let firstMessage: { message: string; code: string } | undefined;
    for (const span of spanList(pack, slots, directory)) {
      if ((await this.#open(span, signal)).damage === undefined) {
        bytes += span.length;
        continue;
      }
      for (const { slot } of span.blobs) {
        const [single] = spanList(pack, [slot], directory);
        const { damage } = await this.#problems.twice(async () => {
          const opened = await this.#open(single!, signal);
          if (opened.damage !== undefined) throw opened.damage;
        }, signal);
        if (damage === undefined) bytes += single!.length;
        else {
          bad.push(slot);
          firstMessage ??= damage;
        }
      }
    }
    if (firstMessage !== undefined) {
      const more = bad.length === 1 ? "" : ` (and at ${bad.length - 1} more of its slots)`;
      const { message, code } = firstMessage;
      this.#problems.add({ message: message + more, code }, generations);
    }
    return { pack, bad, chunks: slots.length - bad.length, bytes };
  }

  /** No restore needs a pack's first bytes, but whoever finds the object by itself does. */
  async #checkHeader(pack: string, signal: AbortSignal): Promise<void> {
    const { repository, directories } = this.#tools;
    if (directories.isGone(pack)) return; // rewritten: nothing of it is left
    const header = Buffer.alloc(PACK_HEADER_SIZE);
    try {
      await repository.store.getRange(packKey(pack), 0, header, signal);
    } catch (error) {
      if (hasCode(error, "E_NO_OBJECT")) return; // the blobs will tell
      throw error;
    }
    checkPackHeader(header, repository.config.encrypted, pack);
  }

  async #open(span: Span, signal: AbortSignal): ReturnType<typeof attempt<void>> {
    return await attempt(async () => {
      (await openSpan(span, this.#tools, this.#slabs, signal)).slab.release();
    }, signal);
  }
}

function spanList({ packRef }: UsedPack, slots: readonly number[], directory: PackDirectory): Span[] {
  return [...spans({ packRef, slots: [...slots], chunks: [...slots] }, directory, SPAN_LIMITS)];
}

/**
 * Every slot in use of a pack that was rewritten has to lie somewhere else by now, and to be the same there.
 *
 * @returns those that do not, ascending; none of a pack that is there.
 */
export async function lostOnTheWay(
  pack: UsedPack,
  { directories }: ReadTools,
  problems: Problems,
  signal: AbortSignal,
): Promise<number[]> {
  const { packRef, generations } = pack;
  if (!directories.isGone(packRef.pack)) return [];
  const slots = pack.slots();
  const all = await problems.noting(generations, signal, () => directories.places(packRef, slots, signal));
  if (all !== undefined) return [];
  const lost: number[] = [];
  for (const slot of slots) {
    const { damage } = await attempt(() => directories.places(packRef, [slot], signal), signal);
    if (damage !== undefined) lost.push(slot);
  }
  return lost;
}
