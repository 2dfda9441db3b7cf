import { MemoryStore } from "../support/memory-store.ts";
import { describeObjectStore } from "./object-store.ts";

describeObjectStore("memory", () => {
  const store = new MemoryStore();
  return Promise.resolve({
    store,
    missing: new MemoryStore({ missing: true }),
    witness: (key) => Promise.resolve(store.bytes(key)),
    close: () => Promise.resolve(),
  });
});
