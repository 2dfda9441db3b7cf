import fc from "fast-check";
import { expect, test } from "vitest";
import { GiB, KiB, MiB } from "../../../src/bytes/size.ts";
import { RunTable, ZERO_PACK } from "../../../src/repository/layer-runs.ts";
import { openLayer } from "../../../src/repository/layer-reader.ts";
import { encodeLayer, storeLayer, type LayerRef } from "../../../src/repository/layer-writer.ts";
import {
  decodeFooter,
  encodeFooter,
  packSegment,
  PACKS_PER_PAGE,
  SEGMENT_RUNS_MAX,
  unpackSegment,
  type LayerFooter,
} from "../../../src/repository/layer.ts";
import { layerKey } from "../../../src/repository/names.ts";
import { layerOf, packName, runsOf, TEST_SLOTS, testRef, type PlainRun } from "../../support/layers.ts";
import { memoryRepository, SEALINGS } from "../../support/memory-repository.ts";

const never = new AbortController().signal;
const CHUNK = 64 * KiB;
const corrupt = { kind: "corrupt" };

/** Runs that do not touch, so that none is merged: gap, length, zero or an address. */
const anyRuns = fc
  .array(
    fc.tuple(
      fc.integer({ min: 1, max: 300 }),
      fc.integer({ min: 1, max: 300 }),
      fc.option(fc.tuple(fc.nat(9), fc.nat(TEST_SLOTS - 300)), { nil: undefined }),
    ),
    { maxLength: 60 },
  )
  .map((steps) => {
    let end = -1;
    return steps.map(([gap, count, address]): PlainRun => {
      const first = end + gap;
      end = first + count;
      return address === undefined ? [first, count, "zero"] : [first, count, address[0], address[1]];
    });
  });

test.each(SEALINGS)("what was added is read back ($name)", async ({ encrypted }) => {
  await fc.assert(
    fc.asyncProperty(anyRuns, fc.nat(40_000), fc.nat(40_000), async (runs, from, length) => {
      const repository = memoryRepository({ encrypted });
      const size = 40_000 * CHUNK - 17;
      const ref = await storeLayer(repository, layerOf(size, CHUNK, runs), testRef, never);
      expect(repository.store.objects.get(layerKey(ref.layer))?.bytes.length).toBe(ref.storedBytes);
      const layer = await openLayer(repository, ref, never);
      expect([layer.size, layer.chunkSize, layer.chunks]).toEqual([size, CHUNK, 40_000]);
      expect(await runsOf(layer, 0, layer.chunks)).toEqual(runs);
      expect(await runsOf(layer, from, from + length)).toEqual(clip(runs, from, from + length));
      for await (const pack of layer.packs(never)) expect(pack).toEqual(testRef(pack.pack));
      await layer.verify(never);
    }),
    { numRuns: 60 },
  );
});

function clip(runs: readonly PlainRun[], from: number, to: number): PlainRun[] {
  return runs.flatMap((run): PlainRun[] => {
    const first = Math.max(run[0], from);
    const count = Math.min(run[0] + run[1], to) - first;
    if (count <= 0) return [];
    return run[2] === "zero" ? [[first, count, "zero"]] : [[first, count, run[2], run[3] + first - run[0]]];
  });
}

test("nothing is mentioned of no chunks, also in the middle of a run", async () => {
  const repository = memoryRepository();
  const ref = await storeLayer(repository, layerOf(8 * CHUNK, CHUNK, [[0, 2, "zero"]]), testRef, never);
  expect(await runsOf(await openLayer(repository, ref, never), 1, 1)).toEqual([]);
});

test("runs that touch become one: zeros, and chunks in consecutive slots of one pack", async () => {
  const repository = memoryRepository();
  const added: PlainRun[] = [
    [0, 1, "zero"],
    [1, 2, "zero"],
    [3, 1, 1, 7],
    [4, 2, 1, 8],
    [6, 1, 1, 11],
    [7, 1, 2, 12],
    [9, 1, 2, 13],
  ];
  const ref = await storeLayer(repository, layerOf(GiB, CHUNK, added), testRef, never);
  expect(await runsOf(await openLayer(repository, ref, never), 0, 20)).toEqual([
    [0, 3, "zero"],
    [3, 3, 1, 7],
    [6, 1, 1, 11],
    [7, 1, 2, 12],
    [9, 1, 2, 13],
  ]);
});

test("chunks come in ascending order and inside the disk, into slots that are there", () => {
  const writer = layerOf(10 * CHUNK, CHUNK, [[3, 2, "zero"]]);
  const order = expect.objectContaining({ code: "E_LAYER_ORDER", kind: "bug" }) as unknown;
  expect(() => writer.add(4, 1, "zero")).toThrow(order);
  expect(() => writer.add(9, 2, "zero")).toThrow(order);
  expect(() => writer.add(5, 0, "zero")).toThrow(order);
  writer.add(5, 2, { pack: packName(1), slot: TEST_SLOTS - 1 });
  const { sealer } = memoryRepository();
  expect(() => encodeLayer(writer, sealer, testRef)).toThrow(
    expect.objectContaining({ code: "E_LAYER_SLOT" }),
  );
});

test.each(SEALINGS)(
  "a fragmented disk makes many segments and pack pages, read one by one ($name)",
  async ({ encrypted }) => {
    const repository = memoryRepository({ encrypted });
    const runs = fragmented(SEGMENT_RUNS_MAX * 2 + 1000, PACKS_PER_PAGE + 10);
    const ref = await storeLayer(repository, layerOf(256 * GiB, CHUNK, runs), testRef, never);
    const layer = await openLayer(repository, ref, never);
    expect(layer.segments.map((segment) => segment.runs)).toEqual([SEGMENT_RUNS_MAX, SEGMENT_RUNS_MAX, 1000]);
    const middle = SEGMENT_RUNS_MAX + 5;
    const before = repository.store.requests()["GetObject"] ?? 0;
    expect(await runsOf(layer, runs[middle]![0], runs[middle]![0] + 1)).toEqual([runs[middle]]);
    expect((repository.store.requests()["GetObject"] ?? 0) - before).toBeLessThanOrEqual(2);
    expect(await runsOf(layer, 0, layer.chunks)).toEqual(runs);
    await layer.verify(never);
  },
);

/** Runs of one chunk each, every one in another pack than the one before. */
function fragmented(runs: number, packs: number): PlainRun[] {
  return Array.from({ length: runs }, (_, index): PlainRun => [
    index * 2,
    1,
    (index * 7919) % packs,
    (index * 31) % TEST_SLOTS,
  ]);
}

async function smallLayer(encrypted: boolean) {
  const repository = memoryRepository({ encrypted });
  const runs: PlainRun[] = [
    [2, 3, 1, 5],
    [9, 1, "zero"],
    [11, 1, 2, 0],
  ];
  const ref = await storeLayer(repository, layerOf(MiB, CHUNK, runs), testRef, never);
  return { repository, ref, stored: repository.store.objects.get(layerKey(ref.layer))!.bytes };
}

test.each(SEALINGS)("any flipped bit is found ($name)", async ({ encrypted }) => {
  const { repository, ref, stored } = await smallLayer(encrypted);
  for (let bit = 0; bit < stored.length * 8; bit++) {
    stored[bit >> 3]! ^= 1 << (bit & 7);
    const read = openLayer(repository, ref, never).then((layer) => layer.verify(never));
    await expect(read, `bit ${bit}`).rejects.toMatchObject(corrupt);
    stored[bit >> 3]! ^= 1 << (bit & 7);
  }
  await (await openLayer(repository, ref, never)).verify(never);
});

test("a layer that is cut off, longer, gone or another one is refused", async () => {
  const { repository, ref, stored } = await smallLayer(false);
  const { objects } = repository.store;
  const key = layerKey(ref.layer);
  const replaceBy = (bytes: Buffer): unknown => objects.set(key, { bytes, lastModified: new Date() });
  for (let length = 0; length < stored.length; length++) {
    replaceBy(stored.subarray(0, length));
    await expect(openLayer(repository, ref, never), `${length} bytes`).rejects.toMatchObject(corrupt);
    const lying: LayerRef = { ...ref, storedBytes: length };
    await expect(openLayer(repository, lying, never), `${length} bytes, said so`).rejects.toMatchObject(
      corrupt,
    );
  }
  replaceBy(Buffer.concat([stored, Buffer.alloc(1)]));
  await expect(openLayer(repository, ref, never)).rejects.toMatchObject(corrupt);
  objects.delete(key);
  await expect(openLayer(repository, ref, never)).rejects.toMatchObject({
    code: "E_LAYER_MISSING",
    ...corrupt,
  });
  const other = await storeLayer(repository, layerOf(MiB, CHUNK, [[0, 1, "zero"]]), testRef, never);
  replaceBy(objects.get(layerKey(other.layer))!.bytes);
  await expect(
    openLayer(repository, { ...ref, storedBytes: other.storedBytes }, never),
  ).rejects.toMatchObject(corrupt);
});

test("R15: a sealed layer opens nowhere but under its own key", async () => {
  const { repository, ref, stored } = await smallLayer(true);
  const moved = { ...ref, layer: packName(99) };
  repository.store.objects.set(layerKey(moved.layer), { bytes: stored, lastModified: new Date() });
  await expect(openLayer(repository, moved, never)).rejects.toMatchObject({ code: "E_SEAL" });
});

test("R4: a layer's name never comes from its content", async () => {
  const first = await smallLayer(false);
  const second = await smallLayer(false);
  expect(first.ref.layer).not.toBe(second.ref.layer);
  expect(first.ref.digest).toBe(second.ref.digest);
});

const block = { storedLength: 1000, digest: Buffer.alloc(32, 1) };
const footer: LayerFooter = {
  size: 100 * CHUNK,
  chunkSize: CHUNK,
  packs: 3,
  segments: [
    { first: 0, end: 10, runs: 3, rawLength: 20, ...block },
    { first: 10, end: 100, runs: 5, rawLength: 50, ...block },
  ],
  pages: [block],
};

test("an index with lying counts is refused before anything is allocated for it", () => {
  expect(decodeFooter(encodeFooter(footer), 3000, "layer")).toEqual(footer);
  const [first, second] = footer.segments as [
    LayerFooter["segments"][number],
    LayerFooter["segments"][number],
  ];
  const lies: Record<string, LayerFooter> = {
    "disk too large": { ...footer, size: 2 ** 47 },
    "chunk size no power of two": { ...footer, chunkSize: CHUNK + 1 },
    "chunk size too small": { ...footer, chunkSize: 1024 },
    "chunk size zero": { ...footer, chunkSize: 0 },
    "segments overlap": { ...footer, segments: [first, { ...second, first: 9 }] },
    "segment past the disk": { ...footer, segments: [first, { ...second, end: 101 }] },
    "segment without runs": { ...footer, segments: [first, { ...second, runs: 0 }] },
    "more runs than chunks": { ...footer, segments: [{ ...first, runs: 11 }, second] },
    "too many runs": {
      ...footer,
      size: 2 ** 40,
      segments: [{ ...first, end: 2 ** 20, runs: SEGMENT_RUNS_MAX + 1 }],
    },
    "raw segment too long": { ...footer, segments: [{ ...first, rawLength: 2 ** 31 }, second] },
    "stored segment too long": { ...footer, segments: [{ ...first, storedLength: 2 ** 31 }, second] },
    "page too long": { ...footer, pages: [{ ...block, storedLength: 2 ** 31 }] },
    "page missing": { ...footer, pages: [] },
    "one page more": { ...footer, pages: [block, block] },
    "too many packs": { ...footer, packs: 2 ** 25 },
  };
  for (const [lie, lying] of Object.entries(lies)) {
    const blocks = [...lying.segments, ...lying.pages].reduce(
      (sum, { storedLength }) => sum + storedLength,
      0,
    );
    expect(() => decodeFooter(encodeFooter(lying), blocks, "layer"), lie).toThrow(
      expect.objectContaining(corrupt),
    );
  }
  expect(() => decodeFooter(encodeFooter(footer), 2999, "layer")).toThrow(expect.objectContaining(corrupt));
});

test("a segment that says something else than the index is refused", () => {
  const runs = new RunTable(4);
  runs.push(5, 3, 0, 9);
  runs.push(8, 1, ZERO_PACK, 0);
  runs.push(20, 7, 2, 1);
  const { compressed, ...said } = packSegment(runs);
  expect(unpackSegment(compressed, said, 3, "segment").equals(runs)).toBe(true);
  const refused = (change: Partial<typeof said>, packs = 3): void =>
    expect(
      () => unpackSegment(compressed, { ...said, ...change }, packs, "segment"),
      JSON.stringify(change),
    ).toThrow(expect.objectContaining(corrupt));
  refused({ rawLength: said.rawLength - 1 });
  refused({ rawLength: said.rawLength + 1 });
  refused({ rawLength: 0 });
  refused({ runs: 2 });
  refused({ runs: 4 });
  refused({ first: 6 });
  refused({ end: 26 });
  refused({ end: 28 });
  refused({}, 2);
});

test("a run of slots that the pack does not have is refused when it is read", async () => {
  const repository = memoryRepository();
  const writer = layerOf(MiB, CHUNK, [[0, 3, 1, 10]]);
  const lying = encodeLayer(writer, repository.sealer, (pack) => {
    let asked = 0; // the writer checks first; the table then says less
    return {
      ...testRef(pack),
      get slotCount() {
        return asked++ === 0 ? 13 : 12;
      },
    };
  });
  await repository.store.put(layerKey(lying.ref.layer), Buffer.concat(lying.parts), never);
  const layer = await openLayer(repository, lying.ref, never);
  await expect(runsOf(layer, 0, 16)).rejects.toMatchObject({ code: "E_LAYER", ...corrupt });
});

test("reading ends with the signal's reason", async () => {
  const { repository, ref } = await smallLayer(false);
  const stop = new AbortController();
  const layer = await openLayer(repository, ref, stop.signal);
  const reason = new Error("enough");
  stop.abort(reason);
  await expect(runsOf(layer, 0, 16, stop.signal)).rejects.toBe(reason);
  await expect(openLayer(repository, ref, stop.signal)).rejects.toBe(reason);
});

test("a segment whose frame asks for more memory than any needs is refused", () => {
  const raw = Buffer.from([0, 3]);
  const said = { first: 0, end: 2, runs: 1, rawLength: raw.length };
  const asking = (windowLog: number): Buffer => {
    const frame = Buffer.from("28b52ffd00ff110000", "hex"); // RFC 8878: a window descriptor, one raw block of 2 bytes
    frame[5] = (windowLog - 10) << 3;
    return Buffer.concat([frame, raw]);
  };
  expect(unpackSegment(asking(23), said, 0, "segment").length).toBe(1);
  expect(() => unpackSegment(asking(24), said, 0, "segment")).toThrow(
    expect.objectContaining({ code: "E_LAYER", kind: "corrupt" }),
  );
});
