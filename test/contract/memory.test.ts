import { MemoryStore } from "../support/memory-store.ts";
import { describeObjectStore } from "./object-store.ts";

describeObjectStore("memory", () => {
  const store = new MemoryStore({ limits: { partSizeMin: 1, partSizeMax: 1024 ** 3, partsMax: 10_000 } });
  return Promise.resolve({
    store,
    missing: new MemoryStore(),
    witness: (key) => Promise.resolve(store.bytes(key)),
    close: () => Promise.resolve(),
  });
});
