import { randomBytes } from "node:crypto";
import { describe, expect, test } from "vitest";
import { all, failure, pieces } from "../support/outcomes.ts";
import type { ObjectStore } from "../../src/store/store.ts";
import type { OpenedStore } from "./object-store.ts";

const signal = new AbortController().signal;

/** Objects made of one piece. */
export function describeCreate(opened: () => OpenedStore): void {
  const store = (): ObjectStore => opened().store;
  describe("create", () => {
    test("what is put is read back, by others too", async () => {
      const body = randomBytes(70_001);
      await store().put("create/one.bin", body, signal);
      expect(await store().get("create/one.bin", 100_000, signal)).toEqual(body);
      expect(await opened().witness("create/one.bin")).toEqual(body);
    });

    test("an empty object", async () => {
      await store().put("create/empty", Buffer.alloc(0), signal);
      expect(await store().get("create/empty", 0, signal)).toHaveLength(0);
      expect(await store().getTail("create/empty", 10, signal)).toEqual({ bytes: Buffer.alloc(0), size: 0 });
      expect((await store().head("create/empty", signal))?.size).toBe(0);
    });

    test("bytes of shared memory, from the middle of a buffer", async () => {
      const shared = new Uint8Array(new SharedArrayBuffer(300_000)).fill(7);
      shared.set(randomBytes(1000), 100);
      await store().put("create/shared", shared.subarray(100, 299_000), signal);
      expect(await opened().witness("create/shared")).toEqual(Buffer.from(shared.slice(100, 299_000)));
    });

    test("the same bytes again are success (R19)", async () => {
      const body = randomBytes(1000);
      await store().put("create/again", body, signal);
      await store().put("create/again", body, signal);
      expect(await store().putStream("create/again", pieces(body), signal)).toBe(1000);
    });

    test.each([
      ["of the same length", Buffer.from("other")],
      ["shorter", Buffer.from("oth")],
      ["longer", Buffer.from("other one")],
      ["empty", Buffer.alloc(0)],
    ])("other bytes, %s, are E_EXISTS and change nothing", async (what, body) => {
      const key = `create/taken-${what.replaceAll(" ", "-")}`;
      await store().put(key, Buffer.from("first"), signal);
      expect(await failure(store().put(key, body, signal))).toMatchObject({
        kind: "locked",
        code: "E_EXISTS",
      });
      const streamed = await failure(store().putStream(key, pieces(body), signal));
      expect(streamed).toMatchObject({ kind: "locked", code: "E_EXISTS" });
      expect(await store().get(key, 100, signal)).toEqual(Buffer.from("first"));
    });

    test("of many writers of one key at most one kind of bytes wins, and every loser is told", async () => {
      const bodies = Array.from({ length: 6 }, (_, index) => Buffer.alloc(1000, index));
      const results = await Promise.allSettled(
        bodies.map((body) => store().put("create/race", body, signal)),
      );
      const winners = results.flatMap((result, index) => (result.status === "fulfilled" ? [index] : []));
      expect(winners).toHaveLength(1);
      expect(await store().get("create/race", 1000, signal)).toEqual(bodies[winners[0]!]);
      for (const result of results) {
        if (result.status === "rejected") expect(result.reason).toMatchObject({ code: "E_EXISTS" });
      }
    });

    test("replace creates and replaces", async () => {
      await store().replace("create/lease", Buffer.from("one"), signal);
      await store().replace("create/lease", Buffer.from("second"), signal);
      expect(await store().get("create/lease", 100, signal)).toEqual(Buffer.from("second"));
    });

    test("an aborted call changes nothing and throws the reason", async () => {
      const reason = new Error("stop");
      const aborted = AbortSignal.abort(reason);
      expect(await failure(store().put("create/aborted", Buffer.from("x"), aborted))).toBe(reason);
      expect(await failure(store().replace("create/aborted", Buffer.from("x"), aborted))).toBe(reason);
      expect(await failure(store().putStream("create/aborted", pieces(Buffer.from("x")), aborted))).toBe(
        reason,
      );
      expect(await failure(store().beginUpload("create/aborted", aborted))).toBe(reason);
      expect(await store().head("create/aborted", signal)).toBeUndefined();
    });

    test.each(["", "/a", "a/", "a//b", "../a", "a/../b", ".tmp/a", "a b", "ä", "a".repeat(201)])(
      "%j is no key",
      async (key) => {
        expect(await failure(store().put(key, Buffer.from("x"), signal))).toMatchObject({ code: "E_KEY" });
        expect(await failure(store().get(key, 1, signal))).toMatchObject({ code: "E_KEY" });
      },
    );
  });
}

/** Objects made of a stream of unknown length. */
export function describeStreams(opened: () => OpenedStore): void {
  const store = (): ObjectStore => opened().store;
  describe("streams", () => {
    test.each([0, 1, 1000, 8 * 1024 * 1024, 8 * 1024 * 1024 + 1, 20_000_000])(
      "of %i bytes in odd pieces",
      async (size) => {
        const body = randomBytes(size);
        const key = `stream/${size}`;
        expect(await store().putStream(key, pieces(body, 777_777), signal)).toBe(size);
        expect((await opened().witness(key)).equals(body)).toBe(true);
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
        expect(await failure(store().putStream(`stream/broken-${size}`, broken, signal))).toBe(reason);
        expect(await store().head(`stream/broken-${size}`, signal)).toBeUndefined();
        expect(await all(store().listUploads(`stream/broken-${size}`, signal))).toEqual([]);
      }
    });

    test("an abort while the stream hangs ends soon, leaves nothing, and throws the reason", async () => {
      const run = new AbortController();
      const hanging = (async function* () {
        yield* pieces(Buffer.alloc(9_000_000), 1_000_000);
        run.abort(new Error("enough"));
        await new Promise(() => {}); // never answers
      })();
      expect(await failure(store().putStream("stream/hangs", hanging, run.signal))).toBe(run.signal.reason);
      expect(await store().head("stream/hangs", signal)).toBeUndefined();
      expect(await all(store().listUploads("stream/hangs", signal))).toEqual([]);
    });
  });
}
