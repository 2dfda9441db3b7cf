import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { hasCode } from "../../src/errors.ts";
import type { ObjectStore } from "../../src/store/store.ts";
import { all, failure } from "../support/outcomes.ts";
import { describeCreate, describeStreams } from "./object-store-create.ts";
import { describeListAndDelete, describeRead } from "./object-store-read.ts";
import { describeUploads } from "./object-store-uploads.ts";

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

    describeCreate(() => opened);
    describeStreams(() => opened);
    describeUploads(() => opened);
    describeRead(() => opened);
    describeListAndDelete(() => opened);

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
