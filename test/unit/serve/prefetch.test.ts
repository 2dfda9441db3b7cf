import { expect, test, vi } from "vitest";
import type { Profile } from "../../../src/repository/profiles.ts";
import { Prefetch } from "../../../src/serve/prefetch.ts";
import { ReadRecord } from "../../../src/serve/read-record.ts";
import { seeded } from "../../support/seeded.ts";
import { numbers } from "../backup/chunks.ts";

/** Disks that tell what they were asked for, in order. */
function disksOf(...names: string[]): {
  disks: Map<string, { chunks: number; fetchAhead(chunks: readonly number[]): Promise<void> }>;
  fetched: string[];
} {
  const fetched: string[] = [];
  const disks = new Map(
    names.map((name) => [
      name,
      {
        chunks: 1000,
        fetchAhead: async (chunks: readonly number[]) => {
          fetched.push(...chunks.map((chunk) => `${name}${chunk}`));
          await Promise.resolve();
        },
      },
    ]),
  );
  return { disks, fetched };
}

function profileOf(record: ReadRecord): Profile {
  return record.content() as Profile;
}

test("a record has each chunk once, in the order of first reads; a prefetch asks for the same", async () => {
  for (let seed = 1; seed <= 50; seed++) {
    const random = seeded(seed);
    const record = new ReadRecord();
    const order: string[] = [];
    for (let read = 0; read < 300; read++) {
      const disk = ["a", "b"][random(2)]!;
      const first = random(200);
      for (let chunk = first; chunk < first + 1 + random(4); chunk++) {
        record.note(disk, chunk);
        if (!order.includes(`${disk}${chunk}`)) order.push(`${disk}${chunk}`);
      }
    }
    expect(record.chunks).toBe(order.length);
    const { disks, fetched } = disksOf("a", "b");
    await new Prefetch(profileOf(record), disks, 1000).run(new AbortController().signal);
    expect(fetched.toSorted(), `seed ${seed}`).toEqual(order.toSorted());
    // batches keep the order, disks of one batch are asked apart
    const of = (disk: string, all: readonly string[]): string[] => all.filter((one) => one.startsWith(disk));
    expect(of("a", fetched)).toEqual(of("a", order));
    expect(of("b", fetched)).toEqual(of("b", order));
  }
});

test("no more is fetched than a window ahead of what is read; it ends with the signal", async () => {
  const record = new ReadRecord();
  for (const chunk of numbers(0, 200)) record.note("a", chunk);
  const { disks, fetched } = disksOf("a");
  const prefetch = new Prefetch(profileOf(record), disks, 40);
  const stop = new AbortController();
  const running = prefetch.run(stop.signal);
  await vi.waitUntil(() => fetched.length === 40);
  prefetch.note("a", 500); // not in the profile
  prefetch.note("b", 3);
  prefetch.note("a", 7);
  prefetch.note("a", 7);
  await vi.waitUntil(() => fetched.length > 40);
  await new Promise(setImmediate);
  expect(fetched).toHaveLength(41);
  for (const chunk of [50, 51, 52]) prefetch.note("a", chunk); // read before they were fetched
  await vi.waitUntil(() => fetched.length === 44);
  expect(fetched).toEqual(numbers(0, 44).map((chunk) => `a${chunk}`));
  for (const chunk of numbers(0, 44)) prefetch.note("a", chunk);
  await vi.waitUntil(() => fetched.length === 84);
  expect(fetched).not.toContain("a51");
  stop.abort();
  await running;
  for (const chunk of numbers(44, 100)) prefetch.note("a", chunk);
  await new Promise(setImmediate);
  expect(fetched).toHaveLength(84);
});

test("disks that are not served, and chunks beyond a disk's end, are left out", async () => {
  const record = new ReadRecord();
  record.note("gone", 1);
  record.note("a", 999);
  record.note("a", 1000);
  const { disks, fetched } = disksOf("a");
  await new Prefetch(profileOf(record), disks, 10).run(new AbortController().signal);
  expect(fetched).toEqual(["a999"]);
});

test("what does not fit a profile makes it full", () => {
  const record = new ReadRecord();
  for (const chunk of numbers(0, 16_384)) record.note("a", chunk * 2);
  record.note("a", 0);
  expect([record.chunks, record.isFull]).toEqual([16_384, false]);
  record.note("a", 1);
  expect([record.chunks, record.isFull]).toEqual([16_384, true]);
});
