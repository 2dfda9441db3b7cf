import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DirectoryStore } from "../../src/store/directory.ts";
import { describeObjectStore } from "./object-store.ts";

/** What `link` says on a file system without hard links. */
async function noLinks(): Promise<void> {
  await Promise.reject(Object.assign(new Error("EPERM: operation not permitted, link"), { code: "EPERM" }));
}

for (const [name, options] of [
  ["a directory", {}],
  ["a directory on a file system without hard links", { link: noLinks }],
] as const) {
  describeObjectStore(name, async () => {
    const path = await mkdtemp(join(tmpdir(), "blockhaul-store-"));
    const root = join(path, "deep", "repository");
    return {
      store: new DirectoryStore(root, options),
      missing: new DirectoryStore(join(path, "missing"), options),
      witness: (key) => readFile(join(root, key)),
      close: () => rm(path, { recursive: true }),
    };
  });
}
