import {
  link,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readlink,
  rm,
  stat,
  symlink,
  utimes,
  writeFile,
  type FileHandle,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { DirectoryStore } from "../../src/store/directory.ts";
import { directoryError } from "../../src/store/directory-errors.ts";
import { DirectWriter } from "../../src/disk/direct-writer.ts";
import { FileUpload } from "../../src/store/directory-upload.ts";
import { all, failure, pieces } from "../support/outcomes.ts";
import { runProgram } from "../support/s3-process.ts";

const signal = new AbortController().signal;
const DAY_MS = 24 * 3600 * 1000;

let root: string;
let store: DirectoryStore;

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "blockhaul-directory-"));
  store = new DirectoryStore(root);
});
afterEach(async () => {
  store.close();
  await rm(root, { recursive: true });
});

async function temporaries(): Promise<string[]> {
  return readdir(join(root, ".tmp"));
}

describe("temporary files", () => {
  test("none is left by what succeeds or fails", async () => {
    await store.put("a", Buffer.from("one"), signal);
    await failure(store.put("a", Buffer.from("two"), signal));
    await store.replace("b", Buffer.from("one"), signal);
    await store.replace("b", Buffer.from("two"), signal);
    await store.putStream("c", pieces(Buffer.alloc(10_000)), signal);
    const upload = await store.beginUpload("d", signal);
    await upload.part(0, Buffer.alloc(10), signal);
    await upload.complete(signal);
    await store.now(signal);
    expect(await temporaries()).toEqual([]);
  });

  test("those of runs that died are cleared away when they are old, never sooner", async () => {
    const upload = await store.beginUpload("packs/dead", signal);
    await upload.part(0, Buffer.alloc(10), signal);
    const [name] = await temporaries();
    const file = join(root, ".tmp", name!);
    const clock = await store.now(signal);

    await utimes(file, clock, new Date(clock.getTime() - DAY_MS + 60_000));
    await new DirectoryStore(root).put("young", Buffer.from("x"), signal);
    expect(await temporaries()).toEqual([name]);

    await utimes(file, clock, new Date(clock.getTime() - DAY_MS - 60_000));
    await new DirectoryStore(root).put("old", Buffer.from("x"), signal);
    expect(await temporaries()).toEqual([]);
    await upload.abort();
  });

  test("are no objects, nor is anything else whose name is no key", async () => {
    await store.put("a", Buffer.from("x"), signal);
    await mkdir(join(root, "lost+found"));
    await writeFile(join(root, ".hidden"), "x");
    await writeFile(join(root, "a b"), "x");
    expect((await all(store.list("", signal))).map(({ key }) => key)).toEqual(["a"]);
  });
});

test("a folder is no object, in whatever way it is read", async () => {
  await store.put("packs/one/two", Buffer.from("x"), signal);
  const reads = [
    store.get("packs/one", 10, signal),
    store.getRange("packs/one", 0, Buffer.alloc(1), signal),
    store.getTail("packs/one", 1, signal),
  ];
  for (const read of reads) expect(await failure(read)).toMatchObject({ code: "E_NO_OBJECT" });
  expect(await store.head("packs/one", signal)).toBeUndefined();
});

describe("publishing", () => {
  test.each(["put", "putStream", "upload"] as const)(
    "%s: the file is synced before it has its name, and the folders after, from the root down to it",
    async (how) => {
      const events: string[] = [];
      const any = await open(root, "r");
      const prototype = Object.getPrototypeOf(any) as FileHandle;
      await any.close();
      const sync = vi.spyOn(prototype, "sync").mockImplementation(async function (this: FileHandle) {
        const path = await readlink(`/proc/self/fd/${this.fd}`);
        events.push(path.includes(".tmp") ? "sync file" : `sync ${relative(root, path)}/`);
        await this.datasync();
      });
      try {
        const watched = new DirectoryStore(root, {
          link: async (existing, added) => {
            events.push("link");
            await link(existing, added);
          },
        });
        if (how === "put") await watched.put("a/b/c", Buffer.from("x"), signal);
        if (how === "putStream") await watched.putStream("a/b/c", pieces(Buffer.from("x")), signal);
        if (how === "upload") {
          const upload = await watched.beginUpload("a/b/c", signal);
          await upload.part(0, Buffer.from("x"), signal);
          await upload.complete(signal);
        }
      } finally {
        sync.mockRestore();
      }
      expect(events).toEqual(["sync file", "sync a/", "sync /", "link", "sync a/b/"]);
    },
  );

  test("a link whose reply was lost, as on NFS, is success", async () => {
    const lossy = new DirectoryStore(root, {
      link: async (existing, added) => {
        await link(existing, added);
        await link(existing, added); // the kernel sends it again: EEXIST
      },
    });
    await lossy.put("a", Buffer.from("x"), signal);
    expect(await store.get("a", 1, signal)).toEqual(Buffer.from("x"));
    expect(await temporaries()).toEqual([]);
  });

  test("a claim held by somebody else is waited for, and an abort ends the wait", async () => {
    const unlinked = new DirectoryStore(root, { link: noLinks });
    await unlinked.now(signal);
    const claim = join(root, ".tmp", "claim+packs+one");
    await writeFile(claim, "");
    const run = new AbortController();
    const stopped = failure(unlinked.put("packs/one", Buffer.from("x"), run.signal));
    const waiting = unlinked.put("packs/one", Buffer.from("x"), signal);
    run.abort(new Error("enough"));
    expect(await stopped).toBe(run.signal.reason);
    await rm(claim);
    await waiting;
    expect(await store.get("packs/one", 1, signal)).toEqual(Buffer.from("x"));
  });

  test("a claim that stays is told of by name", async () => {
    const unlinked = new DirectoryStore(root, { link: noLinks });
    await unlinked.now(signal);
    await writeFile(join(root, ".tmp", "claim+packs+one"), "");
    const error = await failure(unlinked.put("packs/one", Buffer.from("x"), signal));
    expect(error).toMatchObject({ kind: "locked", code: "E_EXISTS" });
    expect(String(error)).toContain("claim+packs+one");
    expect(await store.head("packs/one", signal)).toBeUndefined();
  });

  test("a folder that is somewhere else is refused", async () => {
    const other = await mkdtemp("/dev/shm/blockhaul-other-");
    await symlink(other, join(root, "packs"));
    const error = await failure(store.put("packs/one", Buffer.from("x"), signal));
    expect(error).toMatchObject({ kind: "usage", code: "E_STORE_SPLIT" });
    expect(await temporaries()).toEqual([]);
    await rm(other, { recursive: true });
  });

  test("an upload's failed sync fails it, though the kernel tells of it only once", async () => {
    const path = join(root, "file");
    const file = await open(path, "wx");
    let syncs = 0;
    file.datasync = () => {
      syncs++;
      return Promise.reject(Object.assign(new Error("EIO: i/o error, fdatasync"), { code: "EIO" }));
    };
    let published = false;
    const upload = new FileUpload("k", file, new DirectWriter(path), {
      publish: () => {
        published = true;
        return Promise.resolve();
      },
      discard: () => rm(path),
      fail: (error) => directoryError(error, "here", "k"),
    });
    await upload.part(0, Buffer.alloc(10), signal);
    expect(await failure(upload.complete(signal))).toMatchObject({ kind: "unavailable", code: "E_STORE" });
    expect([syncs, published]).toEqual([1, false]);
    await expect(stat(path)).rejects.toThrow();
  });
});

describe("a disk that is full", () => {
  const mount = join(tmpdir(), `blockhaul-full-${process.pid}`);
  let small: DirectoryStore;
  beforeAll(async () => {
    await mkdir(mount);
    runProgram("mount", ["-t", "tmpfs", "-o", "size=4m", "tmpfs", mount]);
    small = new DirectoryStore(mount);
  });
  afterAll(async () => {
    runProgram("umount", [mount]);
    await rm(mount, { recursive: true });
  });

  test("is said so, and what did not fit is gone", async () => {
    await small.put("fits", Buffer.alloc(MiB), signal);
    for (const work of [
      () => small.put("large", Buffer.alloc(8 * MiB), signal),
      () => small.replace("large", Buffer.alloc(8 * MiB), signal),
      () => small.putStream("large", pieces(Buffer.alloc(8 * MiB), MiB), signal),
    ]) {
      const error = await failure(work());
      expect(error).toMatchObject({ kind: "full", code: "E_STORE_FULL" });
      expect(String(error)).toContain(mount);
    }
    const upload = await small.beginUpload("large", signal);
    expect(await failure(upload.part(0, Buffer.alloc(8 * MiB), signal))).toMatchObject({ kind: "full" });
    await upload.abort();
    expect((await all(small.list("", signal))).map(({ key }) => key)).toEqual(["fits"]);
    expect(await readdir(join(mount, ".tmp"))).toEqual([]);
    await small.put("again", Buffer.alloc(2 * MiB), signal);
  });

  test("a read-only one is E_ACCESS", async () => {
    runProgram("mount", ["-o", "remount,ro", mount]);
    expect(await failure(small.put("new", Buffer.alloc(1), signal))).toMatchObject({
      kind: "credentials",
      code: "E_ACCESS",
    });
    expect((await small.get("fits", MiB, signal)).length).toBe(MiB);
  });
});

/** What `link` says on a file system without hard links. */
function noLinks(): Promise<void> {
  return Promise.reject(Object.assign(new Error("EPERM: operation not permitted, link"), { code: "EPERM" }));
}
