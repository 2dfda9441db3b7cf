import { hash } from "node:crypto";
import { describe, expect, test } from "vitest";
import { decodeForward, encodeForward, FORWARD_MAX, type Move } from "../../../src/repository/forward.ts";
import { Forwards } from "../../../src/repository/forwards.ts";
import { forwardKey, newUuid } from "../../../src/repository/names.ts";
import { SLOTS_MAX } from "../../../src/repository/pack-directory.ts";
import { openDirectory } from "../../../src/repository/stored-directory.ts";
import { packName, seeded, testRef } from "../../support/layers.ts";
import { memoryRepository, SEALINGS } from "../../support/memory-repository.ts";
import { storePacks } from "../../support/packs.ts";
import { type MustFail, vectors } from "../../support/vectors.ts";

const never = new AbortController().signal;
const corrupt: unknown = expect.objectContaining({ kind: "corrupt" });

interface ForwardVectors {
  readonly key: string;
  readonly pass: readonly {
    readonly name: string;
    readonly encrypted: boolean;
    readonly hex: string;
    readonly ids: readonly string[];
    readonly moves: readonly { slot: number; pack: string; digest: string; to: number }[];
  }[];
  readonly fail: readonly MustFail[];
}

const written = vectors("forwards") as ForwardVectors;

function plainMove({ slot, target, to }: Move): ForwardVectors["pass"][number]["moves"][number] {
  return { slot, pack: target.pack, digest: target.digest.toString("hex"), to };
}

describe("forwards written by another program", () => {
  test.each(written.pass)("$name", ({ hex, encrypted, ids, moves }) => {
    const repository = memoryRepository({ encrypted });
    const forward = decodeForward(repository, written.key, Buffer.from(hex, "hex"));
    expect(ids.map((_, slot) => forward.directory.idAt(slot).toString("hex"))).toEqual(ids);
    expect(forward.directory.digest).toEqual(hash("sha256", forward.storedDirectory, "buffer"));
    expect([...forward.ways.moves()].map(plainMove)).toEqual(moves);
    const places = ids.map((_, slot) => forward.ways.placeOf(slot));
    expect(places.flatMap((place, slot) => (place === undefined ? [] : [[slot, place.slot]]))).toEqual(
      moves.map(({ slot, to }) => [slot, to]),
    );
    if (encrypted) return;
    const again = encodeForward(repository, written.key, forward, forward.ways.moves());
    expect(again.toString("hex"), "written the same").toBe(hex);
  });

  test.each(written.fail)("refused: $name", ({ hex, code }) => {
    const decode = (): unknown => decodeForward(memoryRepository(), written.key, Buffer.from(hex, "hex"));
    expect(decode).toThrow(expect.objectContaining({ code }));
  });
});

async function example(encrypted: boolean) {
  const repository = memoryRepository({ encrypted });
  const { completed } = await storePacks(repository, [1, 2, 3, 4]);
  const [old] = completed;
  const target = testRef(packName(7));
  const moves = [0, 2, 3].map((slot) => ({ slot, target, to: slot + 9 }));
  const key = forwardKey(old!.pack, newUuid());
  return { repository, old: old!, key, moves, bytes: encodeForward(repository, key, old!, moves) };
}

test.each(SEALINGS)("any flipped bit and any cut is found ($name)", async ({ encrypted }) => {
  const { repository, key, bytes } = await example(encrypted);
  const decode = (changed: Buffer) => decodeForward(repository, key, changed);
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    bytes[bit >> 3]! ^= 1 << (bit & 7);
    expect(() => decode(bytes), `bit ${bit}`).toThrow(corrupt);
    bytes[bit >> 3]! ^= 1 << (bit & 7);
  }
  for (let length = 0; length < bytes.length; length++)
    expect(() => decode(bytes.subarray(0, length)), `${length} bytes`).toThrow(corrupt);
});

test.each(SEALINGS)("random moves are read back ($name)", async ({ encrypted }) => {
  const repository = memoryRepository({ encrypted });
  const { completed } = await storePacks(
    repository,
    Array.from({ length: 60 }, (_, seed) => seed),
  );
  const [old] = completed;
  for (let seed = 1; seed <= 100; seed++) {
    const random = seeded(seed);
    const moves: Move[] = [];
    for (let slot = 0; slot < 60; slot++) {
      if (random(3) === 0) continue;
      const last = moves.at(-1);
      const follows = last !== undefined && random(2) === 0;
      if (follows) moves.push({ slot, target: last.target, to: last.to + 1 });
      else moves.push({ slot, target: testRef(packName(random(3))), to: random(4000) });
    }
    if (moves.length === 0) continue;
    const key = forwardKey(old!.pack, newUuid());
    const forward = decodeForward(repository, key, encodeForward(repository, key, old!, moves));
    expect([...forward.ways.moves()].map(plainMove), `seed ${seed}`).toEqual(moves.map(plainMove));
  }
});

test("R15: a sealed forward opens nowhere but under its own key", async () => {
  const { repository, old, bytes } = await example(true);
  const decode = (): unknown => decodeForward(repository, forwardKey(old.pack, newUuid()), bytes);
  expect(decode).toThrow(expect.objectContaining({ code: "E_SEAL" }));
});

test("R10: a forward counts only for the directory that a layer names", async () => {
  const { repository, old, key, bytes } = await example(false);
  await repository.store.put(key, bytes, never);
  const id = key.split("/")[2]!;
  const load = (changes: object) =>
    new Forwards(repository).load({ ...old.directory.ref, ...changes }, id, never);
  expect([...(await load({})).ways.moves()]).toHaveLength(3);
  for (const changes of [{ digest: Buffer.alloc(32) }, { slotCount: 5 }, { blobBytes: 399 }])
    await expect(load(changes)).rejects.toMatchObject({ code: "E_FORWARD" });
  const elsewhere = forwardKey(packName(3), id);
  await repository.store.put(elsewhere, bytes, never);
  await expect(load({ pack: packName(3) })).rejects.toMatchObject({ code: "E_FORWARD" });
});

test("the largest forward there can be is read", () => {
  const repository = memoryRepository();
  const slot = Buffer.alloc(45);
  slot.writeUInt32LE(1, 32);
  slot.writeUInt32LE(1, 36);
  const stored = Buffer.concat(Array.from({ length: SLOTS_MAX }, () => slot));
  const directory = openDirectory(repository, newUuid(), stored, SLOTS_MAX);
  const moves = Array.from({ length: SLOTS_MAX }, (_, index): Move => {
    const target = { pack: newUuid(), digest: Buffer.alloc(32), slotCount: SLOTS_MAX, blobBytes: SLOTS_MAX };
    return { slot: index, target, to: SLOTS_MAX - 1 - index };
  });
  const key = forwardKey(directory.pack, newUuid());
  const bytes = encodeForward(repository, key, { directory, storedDirectory: stored }, moves);
  expect(bytes.length).toBeLessThanOrEqual(FORWARD_MAX);
  expect(decodeForward(repository, key, bytes).ways.placeOf(SLOTS_MAX - 1)).toMatchObject({ slot: 0 });
});
