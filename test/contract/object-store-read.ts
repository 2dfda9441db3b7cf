import { randomBytes } from "node:crypto";
import { beforeAll, describe, expect, test } from "vitest";
import type { ObjectInfo } from "../../src/store/store.ts";
import { all, failure } from "../support/outcomes.ts";
import type { ObjectStore } from "../../src/store/store.ts";
import type { OpenedStore } from "./object-store.ts";

const signal = new AbortController().signal;

/** Reading, whole and in ranges. */
export function describeRead(opened: () => OpenedStore): void {
  const store = (): ObjectStore => opened().store;
  describe("read", () => {
    const body = randomBytes(1_000_003);
    beforeAll(() => store().put("read/object", body, signal));

    test.each([
      [0, 1],
      [0, 1_000_003],
      [500_000, 300_000],
      [1_000_002, 1],
      [1_000_003, 0],
      [17, 0],
    ])("a range at %i of %i bytes lands in the caller's buffer, and nowhere else", async (offset, length) => {
      const around = Buffer.alloc(length + 20, 0xaa);
      await store().getRange("read/object", offset, around.subarray(10, 10 + length), signal);
      expect(around.subarray(10, 10 + length).equals(body.subarray(offset, offset + length))).toBe(true);
      expect(around.subarray(0, 10).equals(Buffer.alloc(10, 0xaa))).toBe(true);
      expect(around.subarray(10 + length).equals(Buffer.alloc(10, 0xaa))).toBe(true);
    });

    test("into shared memory", async () => {
      const into = new Uint8Array(new SharedArrayBuffer(5000));
      await store().getRange("read/object", 1000, into, signal);
      expect(Buffer.from(into).equals(body.subarray(1000, 6000))).toBe(true);
    });

    test.each([
      [1_000_000, 4],
      [1_000_003, 1],
      [2_000_000, 10],
    ])("a range at %i of %i bytes goes past the end", async (offset, length) => {
      const reading = store().getRange("read/object", offset, Buffer.alloc(length), signal);
      expect(await failure(reading)).toMatchObject({ kind: "corrupt", code: "E_OBJECT_SIZE" });
    });

    test("the tail, and all of it when there is less", async () => {
      const tail = await store().getTail("read/object", 1000, signal);
      expect(tail.size).toBe(1_000_003);
      expect(tail.bytes.equals(body.subarray(-1000))).toBe(true);
      const whole = await store().getTail("read/object", 5_000_000, signal);
      expect(whole.size).toBe(1_000_003);
      expect(whole.bytes.equals(body)).toBe(true);
      expect((await store().getTail("read/object", 0, signal)).size).toBe(1_000_003);
    });

    test("more than the limit is not read", async () => {
      const reading = store().get("read/object", 1_000_002, signal);
      expect(await failure(reading)).toMatchObject({ kind: "corrupt", code: "E_OBJECT_SIZE" });
    });

    test("head tells size and time", async () => {
      const info = await store().head("read/object", signal);
      expect(info).toMatchObject({ key: "read/object", size: 1_000_003 });
      expect(Math.abs(info!.lastModified.getTime() - (await store().now(signal)).getTime())).toBeLessThan(
        60_000,
      );
    });

    test("what is not there", async () => {
      for (const reading of [
        () => store().get("read/nothing", 10, signal),
        () => store().getRange("read/nothing", 0, Buffer.alloc(1), signal),
        () => store().getTail("read/nothing", 1, signal),
      ]) {
        expect(await failure(reading())).toMatchObject({ kind: "notFound", code: "E_NO_OBJECT" });
      }
      expect(await store().head("read/nothing", signal)).toBeUndefined();
    });

    test("an aborted call throws the reason", async () => {
      const aborted = AbortSignal.abort(new Error("stop"));
      for (const reading of [
        () => store().get("read/object", 10, aborted),
        () => store().getRange("read/object", 0, Buffer.alloc(1), aborted),
        () => store().getTail("read/object", 1, aborted),
        () => store().head("read/object", aborted),
        () => all(store().list("", aborted)),
        () => all(store().listUploads("", aborted)),
        () => store().delete(["read/object"], aborted),
        () => store().now(aborted),
      ]) {
        expect(await failure(reading())).toBe(aborted.reason);
      }
      expect(await store().head("read/object", signal)).toBeDefined();
    });
  });
}

/** Listing and deleting. */
export function describeListAndDelete(opened: () => OpenedStore): void {
  const store = (): ObjectStore => opened().store;
  describe("list and delete", () => {
    const keys = [
      "list/a",
      "list/a-b",
      "list/a.b",
      "list/a0",
      "list/a/b",
      "list/a/b/c",
      "list/aa/x",
      "list/B",
    ].filter(
      (key) => key !== "list/a" && key !== "list/a/b", // no key is the folder of another
    );
    beforeAll(() => Promise.all(keys.map((key) => store().put(key, Buffer.from(key), signal))));

    test("in the order of bytes, with sizes", async () => {
      const listed = await all(store().list("list/", signal));
      expect(listed.map(({ key }) => key)).toEqual([...keys].sort());
      expect(listed.every(({ key, size }) => size === key.length)).toBe(true);
    });

    test.each(["list/a", "list/a/", "list/a/b/c", "list/aa", "list/zz", "lis", "list/a/b/cc"])(
      "what begins with %s",
      async (prefix) => {
        const listed = await all(store().list(prefix, signal));
        expect(listed.map(({ key }) => key)).toEqual(keys.filter((key) => key.startsWith(prefix)).sort());
      },
    );

    test("a consumer that stops early", async () => {
      for await (const info of store().list("list/", signal)) {
        expect(info.key).toBe(keys.toSorted()[0]);
        break;
      }
    });

    test("uploads under way are not listed", async () => {
      const upload = await store().beginUpload("list/pending", signal);
      await upload.part(0, Buffer.alloc(10), signal);
      const listed = await all(store().list("list/pending", signal));
      expect(listed).toEqual([]);
      await upload.abort();
    });

    test("more than a page, and deleted in more than a batch", async () => {
      const many = Array.from({ length: 1100 }, (_, index) => `many/${String(index).padStart(5, "0")}`);
      await inGroups(many, 16, (key) => store().replace(key, Buffer.from("x"), signal));
      const listed: ObjectInfo[] = await all(store().list("many/", signal));
      expect(listed.map(({ key }) => key)).toEqual(many);
      await store().delete([...many, "many/not-there"], signal);
      await store().delete([], signal);
      expect(await all(store().list("many/", signal))).toEqual([]);
    });

    test("a deleted key may be written again", async () => {
      await store().put("list/z/back", Buffer.from("one"), signal);
      await store().delete(["list/z/back"], signal);
      expect(await store().head("list/z/back", signal)).toBeUndefined();
      await store().put("list/z/back", Buffer.from("two"), signal);
      expect(await store().get("list/z/back", 10, signal)).toEqual(Buffer.from("two"));
      await store().delete(["list/z/back"], signal);
    });
  });
}

async function inGroups<T>(
  items: readonly T[],
  size: number,
  work: (item: T) => Promise<void>,
): Promise<void> {
  for (let start = 0; start < items.length; start += size) {
    await Promise.all(items.slice(start, start + size).map(work));
  }
}
