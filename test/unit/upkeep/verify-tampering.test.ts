import { expect, test } from "vitest";
import { encodeCondemned } from "../../../src/repository/condemned.ts";
import { recordDamaged } from "../../../src/repository/damaged.ts";
import { loadGenerations } from "../../../src/repository/generations.ts";
import { holdGeneration } from "../../../src/repository/holds.ts";
import { condemnedKey, newUuid } from "../../../src/repository/names.ts";
import { verify, type Problem, type VerifyReport } from "../../../src/upkeep/verify.ts";
import { Backups } from "../../support/backups.ts";
import { memoryRepository, SEALINGS } from "../../support/memory-repository.ts";
import type { MemoryStore } from "../../support/memory-store.ts";
import { CHUNK, diskOf, numbers } from "../backup/chunks.ts";

const never = new AbortController().signal;

/** As the command does it, with all data, and nothing written. */
async function verified(backups: Backups): Promise<VerifyReport> {
  const found: Problem[] = [];
  const manifests = await loadGenerations(backups.repository, undefined, never, (error, { generation }) =>
    found.push({ message: error.message, code: error.code, generations: [generation] }),
  );
  const quiet = { warn: () => undefined, progress: () => undefined };
  const request = { manifests, found, complete: true, readPercent: 100, record: false, ...quiet };
  return await verify(request, backups.tools(), new AbortController());
}

/** Every kind of object there is, besides leases and forwards. */
async function everyKind(encrypted: boolean): Promise<{ backups: Backups; store: MemoryStore }> {
  const repository = memoryRepository({ encrypted, packSize: 20 * CHUNK, partSize: CHUNK });
  const backups = await Backups.start(repository);
  await backups.backup([diskOf(numbers(1, 30))]);
  await backups.backup([diskOf([...numbers(1, 29), 77])]);
  const [first] = await backups.generations();
  await holdGeneration(repository, first!, { reason: null, host: "test", writer: "test" }, never);
  await recordDamaged(repository, newUuid(), [3], never);
  const prune = newUuid();
  const key = condemnedKey(prune);
  const since = new Date().toISOString();
  const record = {
    format: 1,
    repository: repository.config.repository,
    prune,
    since,
    packs: [],
    layers: [],
  } as const;
  await repository.store.put(key, encodeCondemned(repository, key, record), never);
  return { backups, store: repository.store };
}

test.each(SEALINGS)(
  "a flipped bit anywhere, and an object that is gone, is found ($name)",
  async ({ encrypted }) => {
    const { backups, store } = await everyKind(encrypted);
    const bytes = new Map([...store.objects].map(([key, stored]) => [key, stored.bytes]));
    expect((await verified(backups)).problems).toEqual([]);
    const kinds = new Set([...bytes.keys()].map((key) => key.split("/")[0]));
    expect([...kinds].sort()).toEqual(
      ["condemned", "damaged", "generations", "holds", "index", "layers", "packs", "runs"].sort(),
    );
    for (const [key, object] of bytes) {
      const { length } = object;
      const offsets = [
        0,
        9,
        Math.floor(length / 3),
        Math.floor(length / 2),
        length - 200,
        length - 30,
        length - 1,
      ];
      for (const at of offsets.filter((one) => one >= 0 && one < length)) {
        object[at]! ^= 1 << (at & 7);
        const { problems, losses } = await verified(backups);
        expect(problems.length, `${key}, byte ${at} of ${length}`).toBeGreaterThan(0);
        // the first bytes of layers and packs are for whoever finds the object by itself
        const lost = /^(layers|packs)\//.test(key) && at >= 16;
        expect(losses.length > 0, `${key}, byte ${at}`).toBe(lost);
        object[at]! ^= 1 << (at & 7);
      }
      if (!/^(packs|layers)\//.test(key)) continue;
      const stored = store.objects.get(key)!;
      store.objects.delete(key);
      const { losses } = await verified(backups);
      expect(losses.length, `${key} gone`).toBeGreaterThan(0);
      store.objects.set(key, stored);
    }
    expect((await verified(backups)).problems).toEqual([]);
  },
);
