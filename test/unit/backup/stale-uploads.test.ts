import { expect, test } from "vitest";
import { acquireLease } from "../../../src/repository/leases.ts";
import { newUuid, packKey, uuidv7 } from "../../../src/repository/names.ts";
import { FaultyStore } from "../../support/faulty-store.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { diskOf, newBackups } from "./chunks.ts";

const never = new AbortController().signal;
const timing = { ttlMs: 600_000, heartbeatMs: 600_000, settleMs: 1, isGone: (): boolean => false };

test("uploads that a dead run left behind are aborted; those of a run that lives are not", async () => {
  let now = Date.now();
  const backups = await newBackups({ store: new MemoryStore({ now: () => now }) });
  const { store, repository } = backups;
  await store.beginUpload(packKey(newUuid()), never); // by a run that died
  now += 1;
  const holder = { host: "elsewhere", pid: 7 };
  const other = await acquireLease(repository, "db", uuidv7(now), { ...timing, holder }, never);
  now += 1;
  const alive = packKey(newUuid());
  await store.beginUpload(alive, never);
  now += 1;
  await backups.backup([diskOf([1])]);
  expect([...store.uploads.values()].map(({ key }) => key)).toEqual([alive]);
  await other.release();
  await backups.backup([diskOf([1])]);
  expect(store.uploads.size).toBe(0);
});

test("that they cannot be removed is said, and stops nobody", async () => {
  const backups = await newBackups();
  const store = new FaultyStore(backups.store, { operation: "listUploads", kind: "before" });
  await backups.backup([diskOf([1])], { store });
  store.assertAllHit();
  expect(backups.warnings).toEqual([expect.stringMatching(/^Uploads that an earlier run left behind/)]);
});
