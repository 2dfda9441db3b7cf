import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { hasCode } from "../../src/errors.ts";
import type { ObjectInfo, ObjectStore } from "../../src/store/store.ts";

export interface OpenedStore {
  /** Empty. */
  readonly store: ObjectStore;
  /** A store of the same kind whose bucket or directory does not exist. */
  readonly missing: ObjectStore;
  /** Reads an object behind the store's back, by other code than its own. */
  readonly witness: (key: string) => Promise<Buffer>;
  readonly close: () => Promise<void>;
  /** MinIO: `listUploads` finds an upload by its whole key only. */
  readonly uploadsByWholeKey?: true;
}

const signal = new AbortController().signal;

/** Held to by every implementation of `ObjectStore`. `open` is called once; each test has keys of its own. */
export function describeObjectStore(name: string, open: () => Promise<OpenedStore>): void {
  describe(name, () => {
    let opened: OpenedStore;
    let store: ObjectStore;
    beforeAll(async () => {
      opened = await open();
      store = opened.store;
    });
    afterAll(async () => {
      store.close();
      opened.missing.close();
      await opened.close();
    });

    describe("create", () => {
      test("what is put is read back, by others too", async () => {
        const body = randomBytes(70_001);
        await store.put("create/one.bin", body, signal);
        expect(await store.get("create/one.bin", 100_000, signal)).toEqual(body);
        expect(await opened.witness("create/one.bin")).toEqual(body);
      });

      test("an empty object", async () => {
        await store.put("create/empty", Buffer.alloc(0), signal);
        expect(await store.get("create/empty", 0, signal)).toHaveLength(0);
        expect(await store.getTail("create/empty", 10, signal)).toEqual({ bytes: Buffer.alloc(0), size: 0 });
        expect((await store.head("create/empty", signal))?.size).toBe(0);
      });

      test("bytes of shared memory, from the middle of a buffer", async () => {
        const shared = new Uint8Array(new SharedArrayBuffer(300_000)).fill(7);
        shared.set(randomBytes(1000), 100);
        await store.put("create/shared", shared.subarray(100, 299_000), signal);
        expect(await opened.witness("create/shared")).toEqual(Buffer.from(shared.slice(100, 299_000)));
      });

      test("the same bytes again are success (R19)", async () => {
        const body = randomBytes(1000);
        await store.put("create/again", body, signal);
        await store.put("create/again", body, signal);
        expect(await store.putStream("create/again", pieces(body), signal)).toBe(1000);
      });

      test.each([
        ["of the same length", Buffer.from("other")],
        ["shorter", Buffer.from("oth")],
        ["longer", Buffer.from("other one")],
        ["empty", Buffer.alloc(0)],
      ])("other bytes, %s, are E_EXISTS and change nothing", async (what, body) => {
        const key = `create/taken-${what.replaceAll(" ", "-")}`;
        await store.put(key, Buffer.from("first"), signal);
        expect(await failure(store.put(key, body, signal))).toMatchObject({
          kind: "locked",
          code: "E_EXISTS",
        });
        const streamed = await failure(store.putStream(key, pieces(body), signal));
        expect(streamed).toMatchObject({ kind: "locked", code: "E_EXISTS" });
        expect(await store.get(key, 100, signal)).toEqual(Buffer.from("first"));
      });

      test("of many writers of one key at most one kind of bytes wins, and every loser is told", async () => {
        const bodies = Array.from({ length: 6 }, (_, index) => Buffer.alloc(1000, index));
        const results = await Promise.allSettled(
          bodies.map((body) => store.put("create/race", body, signal)),
        );
        const winners = results.flatMap((result, index) => (result.status === "fulfilled" ? [index] : []));
        expect(winners).toHaveLength(1);
        expect(await store.get("create/race", 1000, signal)).toEqual(bodies[winners[0]!]);
        for (const result of results) {
          if (result.status === "rejected") expect(result.reason).toMatchObject({ code: "E_EXISTS" });
        }
      });

      test("replace creates and replaces", async () => {
        await store.replace("create/lease", Buffer.from("one"), signal);
        await store.replace("create/lease", Buffer.from("second"), signal);
        expect(await store.get("create/lease", 100, signal)).toEqual(Buffer.from("second"));
      });

      test("an aborted call changes nothing and throws the reason", async () => {
        const reason = new Error("stop");
        const aborted = AbortSignal.abort(reason);
        expect(await failure(store.put("create/aborted", Buffer.from("x"), aborted))).toBe(reason);
        expect(await failure(store.replace("create/aborted", Buffer.from("x"), aborted))).toBe(reason);
        expect(await failure(store.putStream("create/aborted", pieces(Buffer.from("x")), aborted))).toBe(
          reason,
        );
        expect(await failure(store.beginUpload("create/aborted", aborted))).toBe(reason);
        expect(await store.head("create/aborted", signal)).toBeUndefined();
      });

      test.each(["", "/a", "a/", "a//b", "../a", "a/../b", ".tmp/a", "a b", "ä", "a".repeat(201)])(
        "%j is no key",
        async (key) => {
          expect(await failure(store.put(key, Buffer.from("x"), signal))).toMatchObject({ code: "E_KEY" });
          expect(await failure(store.get(key, 1, signal))).toMatchObject({ code: "E_KEY" });
        },
      );
    });

    describe("streams", () => {
      test.each([0, 1, 1000, 8 * 1024 * 1024, 8 * 1024 * 1024 + 1, 20_000_000])(
        "of %i bytes in odd pieces",
        async (size) => {
          const body = randomBytes(size);
          const key = `stream/${size}`;
          expect(await store.putStream(key, pieces(body, 777_777), signal)).toBe(size);
          expect((await opened.witness(key)).equals(body)).toBe(true);
        },
      );

      test("a stream that fails leaves nothing, and its error comes out", async () => {
        for (const size of [10, 20_000_000]) {
          const reason = new Error("the source broke");
          const broken = (async function* () {
            yield* pieces(Buffer.alloc(size), 500_000);
            await Promise.resolve();
            throw reason;
          })();
          expect(await failure(store.putStream(`stream/broken-${size}`, broken, signal))).toBe(reason);
          expect(await store.head(`stream/broken-${size}`, signal)).toBeUndefined();
          expect(await all(store.listUploads(`stream/broken-${size}`, signal))).toEqual([]);
        }
      });

      test("an abort while the stream hangs ends soon, leaves nothing, and throws the reason", async () => {
        const run = new AbortController();
        const hanging = (async function* () {
          yield* pieces(Buffer.alloc(9_000_000), 1_000_000);
          run.abort(new Error("enough"));
          await new Promise(() => {}); // never answers
        })();
        expect(await failure(store.putStream("stream/hangs", hanging, run.signal))).toBe(run.signal.reason);
        expect(await store.head("stream/hangs", signal)).toBeUndefined();
        expect(await all(store.listUploads("stream/hangs", signal))).toEqual([]);
      });
    });

    describe("uploads in parts", () => {
      const PART = 5 * 1024 * 1024;

      test("several parts at once, the last one short", async () => {
        const body = randomBytes(3 * PART + 12_345);
        const upload = await store.beginUpload("parts/several", signal);
        await Promise.all(parts(body, PART).map((part, number) => upload.part(number, part, signal)));
        expect(await store.head("parts/several", signal)).toBeUndefined();
        await upload.complete(signal);
        await upload.abort(); // of a published object: nothing
        expect((await opened.witness("parts/several")).equals(body)).toBe(true);
        expect(await all(store.listUploads("parts/several", signal))).toEqual([]);
      });

      test("a single short part", async () => {
        const upload = await store.beginUpload("parts/single", signal);
        await upload.part(0, Buffer.from("small"), signal);
        await upload.complete(signal);
        expect(await store.get("parts/single", 10, signal)).toEqual(Buffer.from("small"));
      });

      test("an upload under way is listed, and abort leaves nothing", async () => {
        const upload = await store.beginUpload("parts/given-up", signal);
        await upload.part(0, Buffer.alloc(PART), signal);
        const [listed] = await all(store.listUploads("parts/given-up", signal));
        expect(listed?.key).toBe("parts/given-up");
        expect(Math.abs(listed!.initiated.getTime() - Date.now())).toBeLessThan(3600_000);
        await upload.abort();
        await upload.abort();
        expect(await all(store.listUploads("parts/given-up", signal))).toEqual([]);
        expect(await store.head("parts/given-up", signal)).toBeUndefined();
      });

      test("uploads are found by what their keys begin with", async () => {
        const keys = ["parts/found/a", "parts/found/b", "parts/other"];
        const uploads = [];
        for (const key of keys) {
          const upload = await store.beginUpload(key, signal);
          await upload.part(0, Buffer.alloc(10), signal);
          uploads.push(upload);
        }
        const listed = await all(store.listUploads("parts/found/", signal));
        const wanted = opened.uploadsByWholeKey === true ? [] : keys.slice(0, 2);
        expect(listed.map(({ key }) => key)).toEqual(wanted);
        for (const upload of uploads) await upload.abort();
        expect(await all(store.listUploads("parts/found/", signal))).toEqual([]);
      });

      test("abort in the middle of parts leaves nothing", async () => {
        const upload = await store.beginUpload("parts/middle", signal);
        const sending = parts(Buffer.alloc(3 * PART), PART).map((part, number) =>
          upload.part(number, part, signal),
        );
        const settled = Promise.allSettled(sending);
        await upload.abort();
        await settled;
        expect(await all(store.listUploads("parts/middle", signal))).toEqual([]);
      });

      test("somebody else's upload is found and aborted; its parts and completion then fail", async () => {
        const upload = await store.beginUpload("parts/stale", signal);
        await upload.part(0, Buffer.alloc(1000), signal);
        const [listed] = await all(store.listUploads("parts/stale", signal));
        await store.abortUpload(listed!, signal);
        await store.abortUpload(listed!, signal);
        expect(await failure(upload.complete(signal))).toBeInstanceOf(Error);
        expect(await store.head("parts/stale", signal)).toBeUndefined();
        await upload.abort();
      });

      test("a part that is aborted spoils the upload", async () => {
        const upload = await store.beginUpload("parts/spoilt", signal);
        const run = new AbortController();
        const sending = upload.part(0, Buffer.alloc(PART), run.signal);
        run.abort(new Error("stop"));
        expect(await failure(sending)).toBe(run.signal.reason);
        const more = upload.part(1, Buffer.alloc(PART), signal);
        expect(await failure(more)).toMatchObject({ kind: "bug", code: "E_UPLOAD" });
        expect(await failure(upload.complete(signal))).toMatchObject({ code: "E_UPLOAD" });
        await upload.abort();
        expect(await all(store.listUploads("parts/spoilt", signal))).toEqual([]);
      });

      test.each<[string, (readonly [number, number])[]]>([
        ["none", []],
        [
          "a gap",
          [
            [0, PART],
            [2, PART],
          ],
        ],
        [
          "one twice",
          [
            [0, PART],
            [0, PART],
          ],
        ],
        ["an empty one", [[0, 0]]],
        [
          "unequal ones",
          [
            [0, PART],
            [1, PART + 1],
          ],
        ],
        [
          "a short one in the middle",
          [
            [0, PART],
            [1, 1000],
            [2, PART],
          ],
        ],
      ])("parts that cannot be: %s", async (what, sent) => {
        const key = `parts/wrong-${what.replaceAll(" ", "-")}`;
        const upload = await store.beginUpload(key, signal);
        const work = async (): Promise<void> => {
          for (const [number, size] of sent) await upload.part(number, Buffer.alloc(size), signal);
          await upload.complete(signal);
        };
        expect(await failure(work())).toMatchObject({ kind: "bug", code: "E_UPLOAD" });
        await upload.abort();
        expect(await store.head(key, signal)).toBeUndefined();
        expect(await all(store.listUploads(key, signal))).toEqual([]);
      });
    });

    describe("read", () => {
      const body = randomBytes(1_000_003);
      beforeAll(() => store.put("read/object", body, signal));

      test.each([
        [0, 1],
        [0, 1_000_003],
        [500_000, 300_000],
        [1_000_002, 1],
        [1_000_003, 0],
        [17, 0],
      ])(
        "a range at %i of %i bytes lands in the caller's buffer, and nowhere else",
        async (offset, length) => {
          const around = Buffer.alloc(length + 20, 0xaa);
          await store.getRange("read/object", offset, around.subarray(10, 10 + length), signal);
          expect(around.subarray(10, 10 + length).equals(body.subarray(offset, offset + length))).toBe(true);
          expect(around.subarray(0, 10).equals(Buffer.alloc(10, 0xaa))).toBe(true);
          expect(around.subarray(10 + length).equals(Buffer.alloc(10, 0xaa))).toBe(true);
        },
      );

      test("into shared memory", async () => {
        const into = new Uint8Array(new SharedArrayBuffer(5000));
        await store.getRange("read/object", 1000, into, signal);
        expect(Buffer.from(into).equals(body.subarray(1000, 6000))).toBe(true);
      });

      test.each([
        [1_000_000, 4],
        [1_000_003, 1],
        [2_000_000, 10],
      ])("a range at %i of %i bytes goes past the end", async (offset, length) => {
        const reading = store.getRange("read/object", offset, Buffer.alloc(length), signal);
        expect(await failure(reading)).toMatchObject({ kind: "corrupt", code: "E_OBJECT_SIZE" });
      });

      test("the tail, and all of it when there is less", async () => {
        const tail = await store.getTail("read/object", 1000, signal);
        expect(tail.size).toBe(1_000_003);
        expect(tail.bytes.equals(body.subarray(-1000))).toBe(true);
        const whole = await store.getTail("read/object", 5_000_000, signal);
        expect(whole.size).toBe(1_000_003);
        expect(whole.bytes.equals(body)).toBe(true);
        expect((await store.getTail("read/object", 0, signal)).size).toBe(1_000_003);
      });

      test("more than the limit is not read", async () => {
        const reading = store.get("read/object", 1_000_002, signal);
        expect(await failure(reading)).toMatchObject({ kind: "corrupt", code: "E_OBJECT_SIZE" });
      });

      test("head tells size and time", async () => {
        const info = await store.head("read/object", signal);
        expect(info).toMatchObject({ key: "read/object", size: 1_000_003 });
        expect(Math.abs(info!.lastModified.getTime() - (await store.now(signal)).getTime())).toBeLessThan(
          60_000,
        );
      });

      test("what is not there", async () => {
        for (const reading of [
          () => store.get("read/nothing", 10, signal),
          () => store.getRange("read/nothing", 0, Buffer.alloc(1), signal),
          () => store.getTail("read/nothing", 1, signal),
        ]) {
          expect(await failure(reading())).toMatchObject({ kind: "notFound", code: "E_NO_OBJECT" });
        }
        expect(await store.head("read/nothing", signal)).toBeUndefined();
      });

      test("an aborted call throws the reason", async () => {
        const aborted = AbortSignal.abort(new Error("stop"));
        for (const reading of [
          () => store.get("read/object", 10, aborted),
          () => store.getRange("read/object", 0, Buffer.alloc(1), aborted),
          () => store.getTail("read/object", 1, aborted),
          () => store.head("read/object", aborted),
          () => all(store.list("", aborted)),
          () => all(store.listUploads("", aborted)),
          () => store.delete(["read/object"], aborted),
          () => store.now(aborted),
        ]) {
          expect(await failure(reading())).toBe(aborted.reason);
        }
        expect(await store.head("read/object", signal)).toBeDefined();
      });
    });

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
      beforeAll(() => Promise.all(keys.map((key) => store.put(key, Buffer.from(key), signal))));

      test("in the order of bytes, with sizes", async () => {
        const listed = await all(store.list("list/", signal));
        expect(listed.map(({ key }) => key)).toEqual([...keys].sort());
        expect(listed.every(({ key, size }) => size === key.length)).toBe(true);
      });

      test.each(["list/a", "list/a/", "list/a/b/c", "list/aa", "list/zz", "lis", "list/a/b/cc"])(
        "what begins with %s",
        async (prefix) => {
          const listed = await all(store.list(prefix, signal));
          expect(listed.map(({ key }) => key)).toEqual(keys.filter((key) => key.startsWith(prefix)).sort());
        },
      );

      test("a consumer that stops early", async () => {
        for await (const info of store.list("list/", signal)) {
          expect(info.key).toBe(keys.toSorted()[0]);
          break;
        }
      });

      test("uploads under way are not listed", async () => {
        const upload = await store.beginUpload("list/pending", signal);
        await upload.part(0, Buffer.alloc(10), signal);
        const listed = await all(store.list("list/pending", signal));
        expect(listed).toEqual([]);
        await upload.abort();
      });

      test("more than a page, and deleted in more than a batch", async () => {
        const many = Array.from({ length: 1100 }, (_, index) => `many/${String(index).padStart(5, "0")}`);
        await inGroups(many, 16, (key) => store.replace(key, Buffer.from("x"), signal));
        const listed: ObjectInfo[] = await all(store.list("many/", signal));
        expect(listed.map(({ key }) => key)).toEqual(many);
        await store.delete([...many, "many/not-there"], signal);
        await store.delete([], signal);
        expect(await all(store.list("many/", signal))).toEqual([]);
      });

      test("a deleted key may be written again", async () => {
        await store.put("list/z/back", Buffer.from("one"), signal);
        await store.delete(["list/z/back"], signal);
        expect(await store.head("list/z/back", signal)).toBeUndefined();
        await store.put("list/z/back", Buffer.from("two"), signal);
        expect(await store.get("list/z/back", 10, signal)).toEqual(Buffer.from("two"));
        await store.delete(["list/z/back"], signal);
      });
    });

    test("the clock is the store's, and goes on", async () => {
      const one = await store.now(signal);
      expect(Math.abs(one.getTime() - Date.now())).toBeLessThan(10_000);
      expect((await store.now(signal)).getTime()).toBeGreaterThanOrEqual(one.getTime() - 1000);
    });

    test("requests() is a copy", () => {
      const before = store.requests();
      expect(store.requests()).not.toBe(before);
      expect(store.requests()).toEqual(before);
    });

    test("a bucket or directory that is missing", async () => {
      const { missing } = opened;
      for (const work of [() => missing.get("a", 1, signal), () => all(missing.list("", signal))]) {
        const error = await failure(work());
        expect(hasCode(error, "E_NO_BUCKET"), String(error)).toBe(true);
      }
    });
  });
}

/** The error of a call that must fail. */
export async function failure(work: Promise<unknown>): Promise<unknown> {
  try {
    await work;
  } catch (error) {
    return error;
  }
  throw new Error("it should have failed");
}

export async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const collected: T[] = [];
  for await (const item of items) collected.push(item);
  return collected;
}

export function parts(body: Buffer, size: number): Buffer[] {
  return Array.from({ length: Math.ceil(body.length / size) }, (_, index) =>
    body.subarray(index * size, (index + 1) * size),
  );
}

/** A body that arrives over time. */
export async function* pieces(body: Buffer, size = 1000): AsyncGenerator<Buffer> {
  for (const piece of parts(body, size)) {
    await Promise.resolve();
    yield piece;
  }
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
