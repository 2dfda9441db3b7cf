import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { decodeIndexObject } from "../../../src/repository/index-objects.ts";
import { openLayer } from "../../../src/repository/layer-reader.ts";
import type { LayerRef } from "../../../src/repository/layer-writer.ts";
import type { MapRun } from "../../../src/repository/layer.ts";
import { layerKey } from "../../../src/repository/names.ts";
import { memoryRepository } from "../../support/memory-repository.ts";

const never = new AbortController().signal;

interface LayerVectors {
  layer: string;
  size: number;
  chunkSize: number;
  pass: {
    name: string;
    encrypted: boolean;
    hex: string;
    digest: string;
    runs: { first: number; count: number; where: "zero" | { pack: string; slot: number } }[];
  }[];
  fail: { name: string; code: string; hex: string; digest: string }[];
}

interface IndexVectors {
  key: string;
  pass: { name: string; encrypted: boolean; hex: string; packs: { pack: string; ids: string[] }[] }[];
  fail: { name: string; code: string; hex: string }[];
}

function vectors(name: string): unknown {
  return JSON.parse(readFileSync(join(import.meta.dirname, "../../vectors", `${name}.json`), "utf8"));
}

const layers = vectors("layers") as LayerVectors;
const indexes = vectors("indexes") as IndexVectors;

async function openVector({ hex, digest }: { hex: string; digest: string }, encrypted = false) {
  const repository = memoryRepository({ encrypted });
  const bytes = Buffer.from(hex, "hex");
  const ref: LayerRef = { layer: layers.layer, digest, storedBytes: bytes.length };
  await repository.store.put(layerKey(ref.layer), bytes, never);
  return openLayer(repository, ref, never);
}

describe("layers written by another program", () => {
  test.each(layers.pass)("$name", async (vector) => {
    const layer = await openVector(vector, vector.encrypted);
    expect([layer.size, layer.chunkSize]).toEqual([layers.size, layers.chunkSize]);
    await layer.verify(never);
    const runs: unknown[] = [];
    for await (const run of layer.runs(0, layer.chunks, never)) runs.push({ ...run, where: placeOf(run) });
    expect(runs).toEqual(vector.runs);
  });

  test.each(layers.fail)("refused: $name", async (vector) => {
    const read = openVector(vector).then((layer) => layer.verify(never));
    await expect(read).rejects.toMatchObject({ code: vector.code });
  });
});

function placeOf({ where }: MapRun): unknown {
  return where === "zero" ? where : { pack: where.packRef.pack, slot: where.slot };
}

describe("index objects written by another program", () => {
  test.each(indexes.pass)("$name", ({ hex, encrypted, packs }) => {
    const found = [
      ...decodeIndexObject(memoryRepository({ encrypted }), indexes.key, Buffer.from(hex, "hex")),
    ];
    const ids = found.map((directory) => ({
      pack: directory.pack,
      ids: Array.from({ length: directory.slotCount }, (_, slot) => directory.idAt(slot).toString("hex")),
    }));
    expect(ids).toEqual(packs);
  });

  test.each(indexes.fail)("refused: $name", ({ hex, code }) => {
    const decode = () => [...decodeIndexObject(memoryRepository(), indexes.key, Buffer.from(hex, "hex"))];
    expect(decode).toThrow(expect.objectContaining({ code }));
  });
});
