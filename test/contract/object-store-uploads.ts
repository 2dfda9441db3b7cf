import { randomBytes } from "node:crypto";
import { describe, expect, test } from "vitest";
import { all, failure, parts } from "../support/outcomes.ts";
import type { ObjectStore } from "../../src/store/store.ts";
import type { OpenedStore } from "./object-store.ts";

const signal = new AbortController().signal;

/** Objects made of parts. */
export function describeUploads(opened: () => OpenedStore): void {
  const store = (): ObjectStore => opened().store;
  describe("uploads in parts", () => {
    const PART = 5 * 1024 * 1024;

    test("several parts at once, the last one short", async () => {
      const body = randomBytes(3 * PART + 12_345);
      const upload = await store().beginUpload("parts/several", signal);
      await Promise.all(parts(body, PART).map((part, number) => upload.part(number, part, signal)));
      expect(await store().head("parts/several", signal)).toBeUndefined();
      await upload.complete(signal);
      await upload.abort(); // of a published object: nothing
      expect((await opened().witness("parts/several")).equals(body)).toBe(true);
      expect(await all(store().listUploads("parts/several", signal))).toEqual([]);
    });

    test("a single short part", async () => {
      const upload = await store().beginUpload("parts/single", signal);
      await upload.part(0, Buffer.from("small"), signal);
      await upload.complete(signal);
      expect(await store().get("parts/single", 10, signal)).toEqual(Buffer.from("small"));
    });

    test("an upload under way is listed, and abort leaves nothing", async () => {
      const upload = await store().beginUpload("parts/given-up", signal);
      await upload.part(0, Buffer.alloc(PART), signal);
      const [listed] = await all(store().listUploads("parts/given-up", signal));
      expect(listed?.key).toBe("parts/given-up");
      expect(Math.abs(listed!.initiated.getTime() - Date.now())).toBeLessThan(3600_000);
      await upload.abort();
      await upload.abort();
      expect(await all(store().listUploads("parts/given-up", signal))).toEqual([]);
      expect(await store().head("parts/given-up", signal)).toBeUndefined();
    });

    test("uploads are found by what their keys begin with", async () => {
      const keys = ["parts/found/a", "parts/found/b", "parts/other"];
      const uploads = [];
      for (const key of keys) {
        const upload = await store().beginUpload(key, signal);
        await upload.part(0, Buffer.alloc(10), signal);
        uploads.push(upload);
      }
      const listed = await all(store().listUploads("parts/found/", signal));
      const wanted = opened().uploadsByWholeKey === true ? [] : keys.slice(0, 2);
      expect(listed.map(({ key }) => key)).toEqual(wanted);
      for (const upload of uploads) await upload.abort();
      expect(await all(store().listUploads("parts/found/", signal))).toEqual([]);
    });

    test("abort in the middle of parts leaves nothing", async () => {
      const upload = await store().beginUpload("parts/middle", signal);
      const sending = parts(Buffer.alloc(3 * PART), PART).map((part, number) =>
        upload.part(number, part, signal),
      );
      const settled = Promise.allSettled(sending);
      await upload.abort();
      await settled;
      expect(await all(store().listUploads("parts/middle", signal))).toEqual([]);
    });

    test("somebody else's upload is found and aborted; its parts and completion then fail", async () => {
      const upload = await store().beginUpload("parts/stale", signal);
      await upload.part(0, Buffer.alloc(1000), signal);
      const [listed] = await all(store().listUploads("parts/stale", signal));
      await store().abortUpload(listed!, signal);
      await store().abortUpload(listed!, signal);
      expect(await failure(upload.complete(signal))).toBeInstanceOf(Error);
      expect(await store().head("parts/stale", signal)).toBeUndefined();
      await upload.abort();
    });

    test("a part that is aborted spoils the upload", async () => {
      const upload = await store().beginUpload("parts/spoilt", signal);
      const run = new AbortController();
      const sending = upload.part(0, Buffer.alloc(PART), run.signal);
      run.abort(new Error("stop"));
      expect(await failure(sending)).toBe(run.signal.reason);
      const more = upload.part(1, Buffer.alloc(PART), signal);
      expect(await failure(more)).toMatchObject({ kind: "bug", code: "E_UPLOAD" });
      expect(await failure(upload.complete(signal))).toMatchObject({ code: "E_UPLOAD" });
      await upload.abort();
      expect(await all(store().listUploads("parts/spoilt", signal))).toEqual([]);
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
      const upload = await store().beginUpload(key, signal);
      const work = async (): Promise<void> => {
        for (const [number, size] of sent) await upload.part(number, Buffer.alloc(size), signal);
        await upload.complete(signal);
      };
      expect(await failure(work())).toMatchObject({ kind: "bug", code: "E_UPLOAD" });
      await upload.abort();
      expect(await store().head(key, signal)).toBeUndefined();
      expect(await all(store().listUploads(key, signal))).toEqual([]);
    });
  });
}
