import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { KiB } from "../../../src/bytes/size.ts";
import { chunkCount } from "../../../src/chunk/grid.ts";
import type { Repository } from "../../../src/repository/config.ts";
import { mergeLayers, storeStack } from "../../../src/repository/layer-merge.ts";
import { openLayer } from "../../../src/repository/layer-reader.ts";
import { DiskMap, LAYERS_MAX, needsTail, planMerge } from "../../../src/repository/layer-stack.ts";
import { storeLayer, type LayerRef } from "../../../src/repository/layer-writer.ts";
import {
  layerOf,
  packName,
  plainRun,
  runsOf,
  seeded,
  TEST_SLOTS,
  testRef,
  type PlainRun,
} from "../../support/layers.ts";
import { memoryRepository } from "../../support/memory-repository.ts";

const never = new AbortController().signal;
const CHUNK = 64 * KiB;

type Random = (below: number) => number;

/** What a chunk is: "zero", or an address as text. */
type Content = string;

/** A disk in the slow model: one entry a chunk. */
interface ModelDisk {
  readonly size: number;
  readonly chunks: readonly Content[];
}

/** One more generation of the disk, and the runs that its layer mentions. */
function nextGeneration(
  random: Random,
  before: ModelDisk | undefined,
): { disk: ModelDisk; runs: PlainRun[] } {
  const size =
    before !== undefined && random(3) > 0 ? before.size : random(20) * CHUNK + random(3) * 1000 + 1;
  const count = chunkCount(size, CHUNK);
  const from = needsTail(before?.size, size, CHUNK) ?? count;
  const chunks: Content[] = [];
  const runs: PlainRun[] = [];
  let dirty = random(2) === 0;
  for (let chunk = 0; chunk < count; chunk++) {
    if (random(4) === 0) dirty = !dirty;
    const old = before?.chunks[chunk] ?? "zero";
    if (!dirty && chunk < from && before !== undefined) {
      chunks.push(old);
      continue;
    }
    const pack = random(5);
    const slot = random(TEST_SLOTS);
    const zero = random(3) === 0;
    chunks.push(zero ? "zero" : `${pack}/${slot}`);
    if (zero && before === undefined) continue; // a full need not mention zeros
    runs.push(zero ? [chunk, 1, "zero"] : [chunk, 1, pack, slot]);
  }
  return { disk: { size, chunks }, runs };
}

function contents(runs: readonly PlainRun[]): Content[] {
  return runs.flatMap(([, count, pack, slot]) =>
    Array.from({ length: count }, (_, index) => (pack === "zero" ? pack : `${pack}/${slot + index}`)),
  );
}

async function expectMap(
  repository: Repository,
  disk: ModelDisk,
  layers: readonly LayerRef[],
  note: string,
  random: Random,
) {
  const map = await DiskMap.open(
    repository,
    { name: "vda", size: disk.size, chunkSize: CHUNK, layers },
    never,
  );
  const beyond = [...disk.chunks, "zero", "zero", "zero"];
  expect(contents(await runsOf(map, 0, beyond.length)), note).toEqual(beyond);
  const from = random(beyond.length);
  const to = from + random(beyond.length - from + 1);
  expect(contents(await runsOf(map, from, to)), `${note}, ${from} to ${to}`).toEqual(beyond.slice(from, to));
}

test(
  "R9: generations of changing size, merged at random, read like a slow model",
  { timeout: 120_000 },
  async () => {
    for (let seed = 1; seed <= 150; seed++) {
      const random = seeded(seed);
      const repository = memoryRepository();
      let disk: ModelDisk | undefined;
      let layers: readonly LayerRef[] = [];
      const history: { disk: ModelDisk; layers: readonly LayerRef[] }[] = [];
      for (let generation = 0; generation < 8; generation++) {
        const next = nextGeneration(random, disk);
        const writer = layerOf(next.disk.size, CHUNK, next.runs);
        if (random(2) === 0) {
          const parent = disk === undefined ? undefined : { size: disk.size, layers };
          layers = await storeStack(repository, writer, testRef, parent, never);
        } else {
          layers = [await storeLayer(repository, writer, testRef, never), ...layers];
        }
        if (random(3) === 0) layers = await mergeTop(repository, layers, 1 + random(layers.length));
        disk = next.disk;
        history.push({ disk, layers });
        await expectMap(repository, disk, layers, `seed ${seed}, generation ${generation}`, random);
      }
      const old = history[random(history.length)]!;
      await expectMap(repository, old.disk, old.layers, `seed ${seed}, an older generation`, random);
    }
  },
);

async function mergeTop(
  repository: Repository,
  layers: readonly LayerRef[],
  count: number,
): Promise<LayerRef[]> {
  const top = await Promise.all(layers.slice(0, count).map((ref) => openLayer(repository, ref, never)));
  return [await mergeLayers(repository, top, count === layers.length, never), ...layers.slice(count)];
}

/** A stack of layers as given, newest first. */
async function stackOf(
  repository: Repository,
  ...layers: { chunks: number; runs: PlainRun[] }[]
): Promise<LayerRef[]> {
  const refs: LayerRef[] = [];
  for (const { chunks, runs } of layers) {
    refs.push(await storeLayer(repository, layerOf(chunks * CHUNK, CHUNK, runs), testRef, never));
  }
  return refs;
}

async function mapRuns(
  repository: Repository,
  chunks: number,
  layers: readonly LayerRef[],
): Promise<PlainRun[]> {
  const size = chunks * CHUNK;
  const map = await DiskMap.open(repository, { name: "vda", size, chunkSize: CHUNK, layers }, never);
  return runsOf(map, 0, chunks);
}

describe("R9", () => {
  const old = { chunks: 10, runs: [[0, 10, 1, 0]] satisfies PlainRun[] };
  const shrunk = { chunks: 4, runs: [[1, 1, 2, 0]] satisfies PlainRun[] };
  const grown = { chunks: 10, runs: [] };
  const expected: PlainRun[] = [
    [0, 1, 1, 0],
    [1, 1, 2, 0],
    [2, 2, 1, 2],
    [4, 6, "zero"],
  ];

  test("at or beyond the end of a smaller disk the lookup stops", async () => {
    const repository = memoryRepository();
    expect(await mapRuns(repository, 10, await stackOf(repository, grown, shrunk, old))).toEqual(expected);
  });

  test("a merge says so with explicit zeros", async () => {
    const repository = memoryRepository();
    const layers = await mergeTop(repository, await stackOf(repository, grown, shrunk, old), 2);
    expect(layers.length).toBe(2);
    expect(await mapRuns(repository, 10, layers)).toEqual(expected);
  });

  test("a changed size without its tail mentioned is not stored", async () => {
    const repository = memoryRepository();
    const layers = await stackOf(repository, old);
    const parent = { size: 10 * CHUNK, layers };
    const tail = { code: "E_LAYER_TAIL", kind: "bug" };
    const put = (size: number, runs: PlainRun[]) =>
      storeStack(repository, layerOf(size, CHUNK, runs), testRef, parent, never);
    await expect(put(12 * CHUNK, [[10, 1, "zero"]])).rejects.toMatchObject(tail);
    await expect(put(12 * CHUNK, [[11, 1, "zero"]])).rejects.toMatchObject(tail);
    await expect(put(4 * CHUNK - 1, [])).rejects.toMatchObject(tail);
    await put(12 * CHUNK, [[10, 2, "zero"]]);
    await put(4 * CHUNK - 1, [[3, 1, 5, 5]]);
    await put(4 * CHUNK, []);
  });

  test("a short last chunk never stands for one of another length", async () => {
    const repository = memoryRepository();
    const writer = layerOf(3 * CHUNK + 100, CHUNK, [[0, 4, 1, 0]]);
    const short = await storeLayer(repository, writer, testRef, never);
    const [longer] = await stackOf(repository, { chunks: 6, runs: [[4, 2, "zero"]] });
    await expect(mapRuns(repository, 6, [longer!, short])).rejects.toMatchObject({
      code: "E_LAYER",
      kind: "corrupt",
    });
  });

  test("needsTail", () => {
    const C = CHUNK;
    expect(needsTail(undefined, 10 * C, C)).toBeUndefined();
    expect(needsTail(10 * C, 10 * C, C)).toBeUndefined();
    expect(needsTail(10 * C, 12 * C, C)).toBe(10);
    expect(needsTail(10 * C + 1, 12 * C, C)).toBe(10);
    expect(needsTail(10 * C - 1, 12 * C, C)).toBe(9);
    expect(needsTail(12 * C, 10 * C, C)).toBeUndefined();
    expect(needsTail(12 * C, 10 * C + 1, C)).toBe(10);
    expect(needsTail(10 * C + 1, 10 * C + 2, C)).toBe(10);
  });
});

test("zeros stay in a merge above another layer and go in one with the bottom", async () => {
  const repository = memoryRepository();
  const zero: PlainRun[] = [[2, 3, "zero"]];
  const data: PlainRun[] = [[0, 3, 1, 0]];
  const layers = await stackOf(
    repository,
    { chunks: 8, runs: zero },
    { chunks: 8, runs: [] },
    { chunks: 8, runs: data },
  );
  const above = await mergeTop(repository, layers, 2);
  const mentions = async (ref: LayerRef) => runsOf(await openLayer(repository, ref, never), 0, 8);
  expect(await mentions(above[0]!)).toEqual(zero);
  const whole = await mergeTop(repository, above, 2);
  expect(whole.length).toBe(1);
  expect(await mentions(whole[0]!)).toEqual([[0, 2, 1, 0]]);
});

test("storing merges the small layers on top, and their zeros go on hiding what lies below", async () => {
  const repository = memoryRepository();
  const large = Array.from({ length: 3000 }, (_, chunk): PlainRun => [
    chunk,
    1,
    (chunk * 7919) % 30,
    (chunk * 31) % 4000,
  ]);
  let layers: readonly LayerRef[] = await stackOf(repository, { chunks: 3000, runs: large });
  const expected = contents(large);
  for (const chunk of [5, 6, 100]) {
    const writer = layerOf(3000 * CHUNK, CHUNK, [[chunk, 1, "zero"]]);
    layers = await storeStack(repository, writer, testRef, { size: 3000 * CHUNK, layers }, never);
    expected[chunk] = "zero";
    expect(contents(await mapRuns(repository, 3000, layers))).toEqual(expected);
  }
  expect(layers.length).toBe(2);
});

test("a pack that no run names any more leaves the table", async () => {
  const repository = memoryRepository();
  const layers = await stackOf(
    repository,
    { chunks: 4, runs: [[0, 4, 2, 0]] },
    { chunks: 4, runs: [[0, 4, 1, 0]] },
  );
  const [merged] = await mergeTop(repository, layers, 2);
  const packs: string[] = [];
  for await (const ref of (await openLayer(repository, merged!, never)).packs(never)) packs.push(ref.pack);
  expect(packs).toEqual([packName(2)]);
});

test("nothing mentioned and the same size: the parent's stack stays as it is", async () => {
  const repository = memoryRepository();
  const layers = await stackOf(repository, { chunks: 4, runs: [[0, 4, 1, 0]] });
  const parent = { size: 4 * CHUNK, layers };
  expect(await storeStack(repository, layerOf(4 * CHUNK, CHUNK, []), testRef, parent, never)).toBe(layers);
  expect(repository.store.objects.size).toBe(1);
});

test("a stack that does not belong to the disk is refused", async () => {
  const repository = memoryRepository();
  const layers = await stackOf(repository, { chunks: 4, runs: [] });
  const stack = { code: "E_LAYER_STACK", kind: "corrupt" };
  await expect(mapRuns(repository, 5, layers)).rejects.toMatchObject(stack);
  await expect(mapRuns(repository, 4, [])).rejects.toMatchObject(stack);
  await expect(mapRuns(repository, 4, new Array<LayerRef>(17).fill(layers[0]!))).rejects.toMatchObject(stack);
  const other = { name: "vda", size: 4 * CHUNK, chunkSize: 2 * CHUNK, layers };
  await expect(DiskMap.open(repository, other, never)).rejects.toMatchObject(stack);
});

test("a merge reads and sends segment by segment", async () => {
  const repository = memoryRepository();
  const even = Array.from({ length: 35_000 }, (_, index): PlainRun => [
    index * 2,
    1,
    index % 50,
    index % 4000,
  ]);
  const odd = Array.from({ length: 35_000 }, (_, index): PlainRun => [
    index * 2 + 1,
    1,
    index % 40,
    index % 3000,
  ]);
  const layers = await stackOf(repository, { chunks: 70_000, runs: even }, { chunks: 70_000, runs: odd });
  const [merged] = await mergeTop(repository, layers, 2);
  const layer = await openLayer(repository, merged!, never);
  const expected = even.flatMap((run, index) => [run, odd[index]!]);
  const found: PlainRun[] = [];
  for await (const run of layer.runs(0, layer.chunks, never)) found.push(plainRun(run));
  expect(found).toEqual(expected);
});

test("planMerge keeps the stack short and every layer twice as large as what lies above it", () => {
  expect(planMerge([100])).toBe(1);
  expect(planMerge([100, 200])).toBe(1);
  expect(planMerge([100, 199])).toBe(2);
  expect(planMerge([100, 199, 597])).toBe(3);
  expect(planMerge([100, 199, 598])).toBe(2);
  const trebling = Array.from({ length: LAYERS_MAX + 3 }, (_, index) => 3 ** index);
  expect(planMerge(trebling.slice(0, LAYERS_MAX))).toBe(1);
  expect(planMerge(trebling)).toBe(4);
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 1, max: 1_000_000 }), { minLength: 1, maxLength: 20 }),
      (sizes) => {
        const merged = planMerge(sizes);
        const left = sizes.length - merged + 1;
        expect(left).toBeLessThanOrEqual(LAYERS_MAX);
        const above = sizes.slice(0, merged).reduce((sum, size) => sum + size, 0);
        if (merged < sizes.length) expect(sizes[merged]).toBeGreaterThanOrEqual(2 * above);
      },
    ),
  );
});
