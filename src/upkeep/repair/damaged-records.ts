import { damagedRecords, recordDamaged, type DamagedRecord } from "../../repository/damaged.ts";
import { packKey } from "../../repository/names.ts";
import type { ReadTools } from "../../repository/read-tools.ts";
import { readPacks } from "../verify/packs.ts";
import { attempt, Problems } from "../verify/problems.ts";
import { UsedPack } from "../verify/used-packs.ts";
import type { RepairStep } from "./actions.ts";

/**
 * Looks again at what `damaged/` records: every slot of those packs is read. A record all of whose slots are right is
 * taken back; in place of one that cannot be read, what is bad is recorded anew.
 */
export async function repairDamagedRecords(
  tools: ReadTools,
  { dryRun, act }: RepairStep,
  run: AbortController,
): Promise<void> {
  const { repository } = tools;
  const { signal } = run;
  const byPack = new Map<string, DamagedRecord[]>();
  for await (const record of damagedRecords(repository, signal)) {
    byPack.set(record.pack, [...(byPack.get(record.pack) ?? []), record]);
  }
  for (const [pack, records] of byPack) {
    const bad = await badSlots(pack, tools, run);
    const known = new Set(records.flatMap(({ slots }) => slots));
    const unreadable = records.filter(({ error }) => error !== undefined);
    const news = unreadable.length === 0 ? [] : [...(bad ?? [])].filter((slot) => !known.has(slot));
    if (news.length > 0) {
      if (!dryRun) await recordDamaged(repository, pack, news, signal);
      act({ action: "record", object: packKey(pack), why: `${news.length} of its slots are bad` });
    }
    const remove = async ({ key }: DamagedRecord, why: string): Promise<void> => {
      if (!dryRun) await repository.store.delete([key], signal);
      act({ action: "remove", object: key, why });
    };
    for (const record of records) {
      const { slots, error } = record;
      if (error !== undefined) await remove(record, error.message);
      else if (bad !== undefined && !slots.some((slot) => bad.has(slot))) {
        await remove(record, `the slots of pack ${pack} that it names were read, and are right`);
      }
    }
  }
}

/** Those of all slots of a pack that do not hold what its directory says; undefined when there is no such pack. */
async function badSlots(
  pack: string,
  tools: ReadTools,
  run: AbortController,
): Promise<ReadonlySet<number> | undefined> {
  const { value: directory } = await attempt(() => tools.directories.load(pack, run.signal), run.signal);
  if (directory === undefined) return undefined;
  const whole = new UsedPack(directory.ref);
  whole.useAll();
  let found: ReadonlySet<number> = new Set();
  await readPacks([whole], tools, new Problems(), run, ({ bad }) => {
    found = new Set(bad);
    return Promise.resolve();
  });
  return found;
}
