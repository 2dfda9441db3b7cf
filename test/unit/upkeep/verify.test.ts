import { expect, test } from "vitest";
import { repositoryStats } from "../../../src/upkeep/stats.ts";
import { CHUNK, diskOf, newBackups, numbers } from "../backup/chunks.ts";

const never = new AbortController().signal;

/** Two generations of one source, sharing packs, and one of another source with its own. */
async function newWorld(): Promise<Awaited<ReturnType<typeof newBackups>>> {
  const backups = await newBackups({ packChunks: 8 });
  await backups.backup([diskOf(numbers(1, 13))]);
  await backups.backup([diskOf([...numbers(1, 12), 40])]);
  await backups.backup([diskOf(numbers(50, 55))], { source: "db" });
  return backups;
}

function keysUnder({ store }: Awaited<ReturnType<typeof newBackups>>, prefix: string): string[] {
  return [...store.objects.keys()].filter((key) => key.startsWith(prefix));
}

test("a sound repository: everything that is used is counted, and read when asked", async () => {
  const backups = await newWorld();
  const chain = await backups.verify({ readPercent: 0 });
  expect(chain).toMatchObject({ generations: 3, chunks: 18, chunksRead: 0, bytesRead: 0, problems: [] });
  const all = await backups.verify();
  expect(all).toMatchObject({
    generations: 3,
    packs: keysUnder(backups, "packs/").length,
    chunks: 18,
    chunksRead: 18,
  });
  expect(all.bytesRead).toBe(18 * CHUNK);
});

test("one bit of a blob shows only when data is read, and names whom it hits", async () => {
  const backups = await newWorld();
  const manifests = await backups.generations();
  const [pack] = keysUnder(backups, "packs/");
  backups.store.bytes(pack!)[CHUNK + 77]! ^= 1;
  const chain = await backups.verify({ readPercent: 0 });
  expect(chain.problems).toEqual([]);
  const { problems } = await backups.verify();
  expect(problems).toHaveLength(1);
  expect(problems[0]!.message).toContain(`${pack!.slice("packs/".length)} is damaged at slot 1`);
  const web = manifests.filter(({ source }) => source === "web").map(({ generation }) => generation);
  expect([...problems[0]!.generations].sort()).toEqual(web);
});

test.each([
  ["a pack's directory", "packs/", (bytes: Buffer) => bytes.length - 200],
  ["a pack's trailer", "packs/", (bytes: Buffer) => bytes.length - 3],
  ["a layer", "layers/", (bytes: Buffer) => bytes.length >> 1],
])(
  "one bit of %s shows without reading data, and the rest is checked all the same",
  async (_, prefix, at) => {
    const backups = await newWorld();
    const bytes = backups.store.bytes(keysUnder(backups, prefix)[0]!);
    bytes[at(bytes)]! ^= 1;
    const report = await backups.verify({ readPercent: 0 });
    expect(report.problems.length).toBeGreaterThan(0);
    expect(report.chunks).toBeGreaterThanOrEqual(5); // those of the other source
  },
);

test.each(["packs/", "layers/"])(
  "an object of %s that is gone is told, and the rest is checked",
  async (prefix) => {
    const backups = await newWorld();
    backups.store.objects.delete(keysUnder(backups, prefix)[0]!);
    const { problems, chunksRead } = await backups.verify();
    expect(problems.length).toBeGreaterThan(0);
    expect(problems.every(({ generations }) => generations.length > 0)).toBe(true);
    expect(chunksRead).toBeGreaterThanOrEqual(5);
  },
);

test("stats count what is there", async () => {
  const backups = await newWorld();
  const stats = await repositoryStats(backups.repository, never);
  expect(stats).toMatchObject({
    sources: 2,
    generations: 3,
    logicalBytes: (12 + 12 + 5) * CHUNK,
    bytesStored: 18 * CHUNK,
    packs: { count: keysUnder(backups, "packs/").length },
    layers: { count: keysUnder(backups, "layers/").length },
    manifests: { count: 3 },
  });
});
