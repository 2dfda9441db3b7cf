import { expect, test } from "vitest";
import { storeDrill, type DrillRecord } from "../../../src/repository/drills.ts";
import { drillKey, uuidv7 } from "../../../src/repository/names.ts";
import { memoryRepository } from "../../support/memory-repository.ts";
import { DAY, forward, runPrune, stopClock } from "../../support/prunes.ts";
import { vectors } from "../../support/vectors.ts";

const never = new AbortController().signal;
const { pass } = vectors("drills") as { pass: readonly { record: DrillRecord }[] };

test("records of drills go after 30 days, but the last one of each source never", async () => {
  stopClock();
  const repository = memoryRepository();
  const began = Date.now();
  const drilled = async (source: string, day: number): Promise<string> => {
    const record = { ...pass[0]!.record, source, drill: uuidv7(began + day * DAY) };
    await storeDrill(repository, record, never);
    return drillKey(source, record.drill);
  };
  const [first, second, last] = [await drilled("web", 0), await drilled("web", 1), await drilled("web", 20)];
  const only = await drilled("db", 0);
  const left = (): string[] =>
    [...repository.store.objects.keys()].filter((key) => key.endsWith(".drill.json"));
  forward(29 * DAY);
  expect(await runPrune(repository)).toMatchObject({ tidied: { runs: 0 } });
  forward(1.5 * DAY);
  expect(await runPrune(repository, { dryRun: true })).toMatchObject({ tidied: { runs: 1 } });
  expect(await runPrune(repository)).toMatchObject({ tidied: { runs: 1 } });
  expect(left().sort()).toEqual([second, last, only].sort());
  forward(300 * DAY);
  expect(await runPrune(repository)).toMatchObject({ tidied: { runs: 1 } });
  expect(left().sort()).toEqual([last, only].sort());
  expect(left()).not.toContain(first);
});
