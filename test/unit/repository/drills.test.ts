import { expect, test } from "vitest";
import { AppError } from "../../../src/errors.ts";
import {
  decodeDrill,
  encodeDrill,
  lastDrills,
  storeDrill,
  type DrillRecord,
} from "../../../src/repository/drills.ts";
import { drillKey, uuidv7 } from "../../../src/repository/names.ts";
import { masterKeySealer } from "../../../src/repository/sealing.ts";
import { SEALINGS, TEST_REPOSITORY, memoryRepository } from "../../support/memory-repository.ts";
import { type MustFail, vectors } from "../../support/vectors.ts";

const never = new AbortController().signal;
const unheard = (error: AppError): never => {
  throw error;
};

const known = vectors("drills") as {
  source: string;
  drill: string;
  pass: { name: string; encrypted: boolean; hex: string; record: DrillRecord }[];
  fail: MustFail[];
};
const masterKey = Buffer.from(Array.from({ length: 32 }, (_, index) => index));
const plain = memoryRepository();
const sealed = { ...plain, sealer: masterKeySealer(TEST_REPOSITORY, masterKey) };

function drillAt(time: number, fields: Partial<DrillRecord> = {}): DrillRecord {
  return { ...known.pass[0]!.record, drill: uuidv7(time), ...fields };
}

test.each(known.pass)("reads what another program wrote: $name", ({ hex, encrypted, record }) => {
  const bytes = Buffer.from(hex, "hex");
  expect(decodeDrill(encrypted ? sealed : plain, known.source, known.drill, bytes)).toEqual(record);
  if (!encrypted) expect(encodeDrill(plain, record).equals(bytes)).toBe(true);
});

test.each(known.fail)("refuses: $name", ({ hex, code }) => {
  const decode = (): unknown => decodeDrill(plain, known.source, known.drill, Buffer.from(hex, "hex"));
  expect(decode).toThrow(expect.objectContaining({ kind: "corrupt", code }));
});

test.each(SEALINGS)("the last drill of each source, by its id's time ($name)", async ({ encrypted }) => {
  const repository = memoryRepository({ encrypted });
  expect(await lastDrills(repository, undefined, never, unheard)).toEqual([]);
  const [old, last, other] = [drillAt(1000), drillAt(2000), drillAt(500, { source: "db" })];
  for (const record of [last, old, other]) await storeDrill(repository, record, never);
  expect(await lastDrills(repository, undefined, never, unheard)).toEqual([other, last]);
  expect(await lastDrills(repository, "web", never, unheard)).toEqual([last]);
  await expect(storeDrill(repository, { ...last, outcome: "failed" }, never)).rejects.toMatchObject({
    code: "E_EXISTS",
  });
});

test("nobody without the key can write the record of a drill that was not, nor move one", async () => {
  const repository = memoryRepository({ encrypted: true });
  const [real, forged, moved] = [drillAt(1000), drillAt(2000), drillAt(3000)];
  await storeDrill(repository, real, never);
  const heard: string[] = [];
  const look = async (): Promise<DrillRecord[]> =>
    await lastDrills(repository, undefined, never, ({ code }) => void heard.push(code));
  await repository.store.put(drillKey("web", forged.drill), encodeDrill(plain, forged), never);
  expect(await look()).toEqual([]);
  const bytes = repository.store.bytes(drillKey("web", real.drill));
  await repository.store.put(drillKey("web", moved.drill), bytes, never);
  expect(await look()).toEqual([]);
  expect(heard).toEqual(["E_SEAL", "E_SEAL"]);
});
