import { GiB } from "../../src/bytes/size.ts";
import { makeAllowance } from "../../src/store/allowance.ts";
import { LimitedStore } from "../../src/store/limited-store.ts";
import { MemoryStore } from "../support/memory-store.ts";
import { describeObjectStore } from "./object-store.ts";

describeObjectStore("a store with an allowance", () => {
  const allowance = makeAllowance({ upload: GiB, download: GiB, requests: 1_000_000 })!;
  const inner = new MemoryStore();
  return Promise.resolve({
    store: new LimitedStore(inner, allowance),
    missing: new LimitedStore(new MemoryStore({ missing: true }), allowance),
    witness: (key) => Promise.resolve(inner.bytes(key)),
    close: () => Promise.resolve(),
  });
});
