import type { Worker } from "node:worker_threads";
import { expect, test, vi } from "vitest";
import { SlabPool } from "../../../src/chunk/slabs.ts";
import { ChunkWorkers } from "../../../src/chunk/workers.ts";

const CHUNK = 64 * 1024;
const born = vi.hoisted((): Worker[] => []);

// The real threads, but known here, so that they can be hurt.
vi.mock("node:worker_threads", async (original) => {
  const real = await original<typeof import("node:worker_threads")>();
  class KnownWorker extends real.Worker {
    constructor(...args: ConstructorParameters<typeof real.Worker>) {
      super(...args);
      born.push(this);
    }
  }
  return { ...real, Worker: KnownWorker };
});

test.each<[string, string, (worker: Worker) => void]>([
  ["ends", "it ended with code 1", (worker) => void worker.terminate()],
  ["throws", "Cannot destructure", (worker) => worker.postMessage(undefined)],
])("a thread that %s takes the others along: every call fails, pending and later", async (_, why, hurt) => {
  born.length = 0;
  const workers = await ChunkWorkers.start({ threads: 2, chunkSize: CHUNK });
  const slab = await new SlabPool(CHUNK, 1).take(new AbortController().signal);
  slab.bytes.fill(1); // to be hashed: zeros would be told so soon that a thread is done before it is stopped
  expect(born).toHaveLength(2);
  const ended = born.map((worker) => new Promise((resolve) => worker.once("exit", resolve)));
  hurt(born[0]!);
  const pieces = Array.from({ length: 5000 }, () => ({ offset: 0, length: CHUNK }));
  const pending = Array.from({ length: 4 }, () => workers.identify(slab, pieces));
  const failure = { kind: "bug", code: "E_CHUNK_WORKER", message: expect.stringContaining(why) as string };
  for (const result of await Promise.allSettled(pending)) {
    expect(result).toMatchObject({ status: "rejected", reason: failure });
  }
  await Promise.all(ended);
  await expect(workers.identify(slab, [])).rejects.toMatchObject(failure);
  await workers.close();
});
