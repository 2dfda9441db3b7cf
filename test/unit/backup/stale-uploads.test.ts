import { expect, test } from "vitest";
import { abortStaleUploads } from "../../../src/backup/stale-uploads.ts";
import { packKey, uuidv7 } from "../../../src/repository/names.ts";
import type { PendingUpload } from "../../../src/store/store.ts";
import { memoryRepository } from "../../support/memory-repository.ts";
import { MemoryStore } from "../../support/memory-store.ts";

const never = new AbortController().signal;
const PACK = packKey("c0000000-0000-4000-8000-000000000000");
const START = Date.parse("2026-11-22T03:00:00.000Z");

/** Tells when uploads were begun to the second, as S3 does. */
class CoarseStore extends MemoryStore {
  override async *listUploads(prefix: string, signal: AbortSignal): AsyncGenerator<PendingUpload> {
    for await (const upload of super.listUploads(prefix, signal)) {
      yield { ...upload, initiated: new Date(Math.floor(upload.initiated.getTime() / 1000) * 1000) };
    }
  }
}

test.each([
  ["of a run that came a moment later, within the same second", 900, 1],
  ["begun at the same moment", 600, 1],
  ["of a second before", -1000, 0],
  ["of a run that died long ago", -3_600_000, 0],
])("an upload %s", async (_, begunMs, left) => {
  let now = START + begunMs;
  const store = new CoarseStore({ now: () => now });
  await store.beginUpload(PACK, never);
  now = START + 950;
  // this run's id was made at 600 ms; the other one's lease came after this one had looked for leases
  expect(await abortStaleUploads(memoryRepository({ store }), uuidv7(START + 600), never)).toBe(1 - left);
  expect(store.uploads.size).toBe(left);
});
