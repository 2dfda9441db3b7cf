import { expect, test } from "vitest";
import { AppError } from "../../../src/errors.ts";
import { commitGeneration } from "../../../src/repository/generations.ts";
import {
  decodeHold,
  encodeHold,
  holdGeneration,
  listHeld,
  loadHolds,
  releaseGeneration,
  type Hold,
} from "../../../src/repository/holds.ts";
import { generationKey, holdKey } from "../../../src/repository/names.ts";
import { masterKeySealer } from "../../../src/repository/sealing.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { testManifest } from "../../support/manifests.ts";
import { SEALINGS, TEST_REPOSITORY, memoryRepository } from "../../support/memory-repository.ts";
import { type MustFail, vectors } from "../../support/vectors.ts";

const never = new AbortController().signal;
const details = { reason: "before the upgrade", host: "alpha", writer: "blockhaul 0" } as const;
const unheard = (error: AppError): never => {
  throw error;
};

const known = vectors("holds") as {
  source: string;
  generation: string;
  pass: { name: string; encrypted: boolean; hex: string; hold: Hold }[];
  fail: MustFail[];
};
const masterKey = Buffer.from(Array.from({ length: 32 }, (_, index) => index));
const plain = memoryRepository();
const sealed = { ...plain, sealer: masterKeySealer(TEST_REPOSITORY, masterKey) };

test.each(known.pass)("reads what another program wrote: $name", ({ hex, encrypted, hold }) => {
  const bytes = Buffer.from(hex, "hex");
  expect(decodeHold(encrypted ? sealed : plain, known.source, known.generation, bytes)).toEqual(hold);
  if (!encrypted) expect(encodeHold(plain, hold).equals(bytes)).toBe(true);
});

test.each(known.fail)("refuses: $name", ({ hex, code }) => {
  const decode = (): unknown => decodeHold(plain, known.source, known.generation, Buffer.from(hex, "hex"));
  expect(decode).toThrow(expect.objectContaining({ kind: "corrupt", code }));
});

test.each(SEALINGS)("held, held again, released ($name)", async ({ encrypted }) => {
  const repository = memoryRepository({ encrypted });
  const web = await commitGeneration(repository, testManifest("2026-11-22T03:00:00Z"), never);
  const { hold, before } = await holdGeneration(repository, web, details, never);
  expect(before).toBe(false);
  expect(hold).toMatchObject({ source: "web", generation: web.generation, ...details });
  const again = await holdGeneration(repository, web, { ...details, reason: null }, never);
  expect(again).toEqual({ hold, before: true }); // the first one stands
  expect(await listHeld(repository, undefined, never)).toEqual([
    { source: "web", generation: web.generation },
  ]);
  expect(await listHeld(repository, "db", never)).toEqual([]);
  expect(await loadHolds(repository, "web", never, unheard)).toEqual(new Map([[web.generation, hold]]));
  await releaseGeneration(repository, web, never);
  expect(await listHeld(repository, undefined, never)).toEqual([]);
  const twice = releaseGeneration(repository, web, never);
  await expect(twice).rejects.toMatchObject({ kind: "notFound", code: "E_NOT_HELD" });
  expect((await holdGeneration(repository, web, details, never)).before).toBe(false);
});

test("what is not there cannot be held, and leaves no hold", async () => {
  const repository = memoryRepository();
  const holding = holdGeneration(repository, testManifest("2026-11-22T03:00:00Z"), details, never);
  await expect(holding).rejects.toMatchObject({ kind: "notFound", code: "E_NO_GENERATION" });
  expect(repository.store.objects.size).toBe(0);
});

test("R24: the generation is looked up after the hold is there", async () => {
  const base = memoryRepository();
  const web = await commitGeneration(base, testManifest("2026-11-22T03:00:00Z"), never);
  const key = generationKey("web", web.generation);
  const store = new HookedStore(base.store, {
    after: (operation, name) => {
      if (operation === "put" && name.startsWith("holds/")) base.store.objects.delete(key);
    },
  });
  const holding = holdGeneration({ ...base, store }, web, details, never);
  await expect(holding).rejects.toMatchObject({ code: "E_NO_GENERATION" });
  expect(base.store.objects.size).toBe(0);
});

test("a look that fails leaves the hold: it does no harm", async () => {
  const base = memoryRepository();
  const web = await commitGeneration(base, testManifest("2026-11-22T03:00:00Z"), never);
  const gone = new AppError("unavailable", "E_STORE", "The bucket does not answer");
  const store = new HookedStore(base.store, {
    before: (operation) => {
      if (operation === "get") throw gone;
    },
  });
  await expect(holdGeneration({ ...base, store }, web, details, never)).rejects.toBe(gone);
  expect(await listHeld(base, "web", never)).toHaveLength(1);
});

test.each(SEALINGS)(
  "a hold that cannot be read, or was moved, holds all the same ($name)",
  async ({ encrypted }) => {
    const repository = memoryRepository({ encrypted });
    const [web, other] = [
      await commitGeneration(repository, testManifest("2026-11-22T03:00:00Z"), never),
      await commitGeneration(repository, testManifest("2026-11-23T03:00:00Z", { sequence: 2 }), never),
    ];
    await holdGeneration(repository, web, details, never);
    const { store } = repository;
    await store.put(holdKey("web", other.generation), store.bytes(holdKey("web", web.generation)), never);
    const said: AppError[] = [];
    const holds = await loadHolds(repository, undefined, never, (error) => void said.push(error));
    expect([...holds.keys()].sort()).toEqual([web.generation, other.generation].sort());
    expect(holds.get(other.generation)).toBeUndefined();
    expect(said).toMatchObject([{ kind: "corrupt", code: encrypted ? "E_SEAL" : "E_MISPLACED" }]);
    await releaseGeneration(repository, other, never);
    expect(await listHeld(repository, undefined, never)).toHaveLength(1);
  },
);
