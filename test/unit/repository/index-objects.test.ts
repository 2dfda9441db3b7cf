import { hash } from "node:crypto";
import { expect, test } from "vitest";
import {
  decodeIndexObject,
  encodeIndexObject,
  INDEX_OBJECT_MAX,
  IndexWriter,
  readIndexObject,
} from "../../../src/repository/index-objects.ts";
import { indexKey, newUuid } from "../../../src/repository/names.ts";
import { memoryRepository, SEALINGS } from "../../support/memory-repository.ts";
import { storePacks } from "../../support/packs.ts";

const never = new AbortController().signal;
const corrupt = { kind: "corrupt" };

test.each(SEALINGS)(
  "directories are read back with the digests that layers name ($name)",
  async ({ encrypted }) => {
    const repository = memoryRepository({ encrypted });
    const { completed } = await storePacks(repository, [1, 2, 3], [4], [5, 6]);
    const key = indexKey("web", newUuid());
    const found = [...decodeIndexObject(repository, key, encodeIndexObject(repository, key, completed))];
    expect(found.map((directory) => directory.ref)).toEqual(completed.map(({ directory }) => directory.ref));
    expect(found.map((directory) => directory.idAt(0))).toEqual(
      completed.map(({ directory }) => directory.idAt(0)),
    );
  },
);

test.each(SEALINGS)("any flipped bit and any cut is found ($name)", async ({ encrypted }) => {
  const repository = memoryRepository({ encrypted });
  const { completed } = await storePacks(repository, [1, 2]);
  const key = indexKey("web", newUuid());
  const bytes = encodeIndexObject(repository, key, completed);
  const decode = (changed: Buffer) => [...decodeIndexObject(repository, key, changed)];
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    bytes[bit >> 3]! ^= 1 << (bit & 7);
    expect(() => decode(bytes), `bit ${bit}`).toThrow(expect.objectContaining(corrupt));
    bytes[bit >> 3]! ^= 1 << (bit & 7);
  }
  for (let length = 0; length < bytes.length; length++) {
    expect(() => decode(bytes.subarray(0, length)), `${length} bytes`).toThrow(
      expect.objectContaining(corrupt),
    );
  }
});

test("lying counts are refused", async () => {
  const repository = memoryRepository();
  const { completed } = await storePacks(repository, [1, 2]);
  const key = indexKey("web", newUuid());
  const good = encodeIndexObject(repository, key, completed).subarray(0, -32);
  const lie = (offset: number, value: number): (() => unknown) => {
    const object = Buffer.from(good);
    object.writeUInt32LE(value, offset);
    const bytes = Buffer.concat([object, hash("sha256", object, "buffer")]);
    return () => [...decodeIndexObject(repository, key, bytes)];
  };
  const [packs, slots, blobBytes] = [16, 36, 40];
  expect(lie(packs, 1)()).toHaveLength(1);
  for (const value of [0, 2, 0xffff_ffff])
    expect(lie(packs, value), `packs ${value}`).toThrow(expect.objectContaining(corrupt));
  for (const value of [0, 1, 3, 0xffff_ffff])
    expect(lie(slots, value), `slots ${value}`).toThrow(expect.objectContaining(corrupt));
  for (const value of [0, 199, 0xffff_ffff])
    expect(lie(blobBytes, value), `bytes ${value}`).toThrow(expect.objectContaining(corrupt));
});

test("R15: a sealed index object opens nowhere but under its own key", async () => {
  const repository = memoryRepository({ encrypted: true });
  const { completed } = await storePacks(repository, [1]);
  const bytes = encodeIndexObject(repository, indexKey("web", newUuid()), completed);
  expect(() => [...decodeIndexObject(repository, indexKey("web", newUuid()), bytes)]).toThrow(
    expect.objectContaining({ code: "E_SEAL" }),
  );
});

test("an object longer than any writer makes is not read", async () => {
  const repository = memoryRepository();
  const key = indexKey("web", newUuid());
  await repository.store.put(key, Buffer.alloc(INDEX_OBJECT_MAX + 1), never);
  await expect(readIndexObject(repository, key, never)).rejects.toMatchObject({ code: "E_OBJECT_SIZE" });
});

test("the writer writes by bytes, by time, and at the end", async () => {
  const repository = memoryRepository();
  const { completed } = await storePacks(repository, [1, 2], [3, 4], [5, 6]);
  const objects = () => [...repository.store.objects.keys()].filter((key) => key.startsWith("index/web/"));
  const written: (readonly string[])[] = [];
  const onWritten = (key: string, packs: readonly string[]): void => {
    expect(objects(), "told after it is stored").toContain(key);
    written.push(packs);
  };
  const names = completed.map(({ pack }) => pack);

  const byBytes = new IndexWriter(repository, "web", { flushBytes: 180, flushMs: 1e9, onWritten });
  await byBytes.add(completed[0]!, never);
  expect(objects()).toHaveLength(0);
  await byBytes.add(completed[1]!, never);
  expect(objects()).toHaveLength(1);
  await byBytes.add(completed[2]!, never);
  await byBytes.flush(never);
  await byBytes.flush(never);
  expect(objects()).toHaveLength(2);
  expect(written).toEqual([names.slice(0, 2), names.slice(2)]);

  const byTime = new IndexWriter(repository, "web", { flushMs: 0, onWritten });
  await byTime.add(completed[0]!, never);
  expect(objects()).toHaveLength(3);
});
