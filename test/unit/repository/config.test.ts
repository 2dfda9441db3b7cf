import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { KiB, MiB } from "../../../src/bytes/size.ts";
import {
  type RepositoryConfig,
  createRepository,
  decodeConfig,
  openRepository,
} from "../../../src/repository/config.ts";
import { packKey, newUuid } from "../../../src/repository/names.ts";
import { encodeRecord } from "../../../src/repository/record.ts";
import { DirectoryStore } from "../../../src/store/directory.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { type MustFail, vectors } from "../../support/vectors.ts";

const never = new AbortController().signal;
const known = vectors("config") as {
  pass: { name: string; hex: string; config: RepositoryConfig }[];
  fail: MustFail[];
};

test.each(known.pass)("reads what another program wrote: $name", ({ hex, config }) => {
  expect(decodeConfig(Buffer.from(hex, "hex"), "memory")).toEqual(config);
  expect(encodeRecord(config).toString("hex")).toBe(hex);
});

test.each(known.fail)("refuses: $name", ({ hex, code }) => {
  const kind = code === "E_REPOSITORY_VERSION" ? "usage" : "corrupt";
  expect(() => decodeConfig(Buffer.from(hex, "hex"), "memory")).toThrow(
    expect.objectContaining({ kind, code }),
  );
});

test("init, then open", async () => {
  const store = new MemoryStore();
  const created = await createRepository(store, {}, never);
  const opened = await openRepository(store, never);
  expect(opened.config).toEqual(created.config);
  expect(opened.config).toMatchObject({
    chunkSize: 256 * KiB,
    packSize: 64 * MiB,
    partSize: 16 * MiB,
    encrypted: false,
  });
  expect([...store.objects.keys()]).toEqual(["repository.json"]);
});

test("init takes sizes", async () => {
  const sizes = { chunkSize: 4 * MiB, packSize: 128 * MiB, partSize: 32 * MiB };
  const { config } = await createRepository(new MemoryStore(), sizes, never);
  expect(config).toMatchObject(sizes);
});

test.each([
  { chunkSize: 100_000 },
  { chunkSize: 32 * KiB },
  { chunkSize: 8 * MiB },
  { chunkSize: 0 },
  { chunkSize: NaN },
  { packSize: 8 * MiB },
  { packSize: 2048 * MiB },
  { chunkSize: 4 * MiB, packSize: 8 * MiB, partSize: MiB },
  { partSize: 64 * KiB, packSize: 128 * MiB },
  { partSize: 4 * MiB },
])("init refuses %o, and changes nothing", async (sizes) => {
  const store = new MemoryStore({
    limits: { partSizeMin: 5 * MiB, partSizeMax: 5120 * MiB, partsMax: 10_000 },
  });
  await expect(createRepository(store, sizes, never)).rejects.toMatchObject({
    kind: "usage",
    code: "E_REPOSITORY_SIZES",
  });
  expect(store.objects.size).toBe(0);
});

test("init on a repository changes nothing", async () => {
  const store = new MemoryStore();
  await createRepository(store, {}, never);
  const before = Buffer.from(store.bytes("repository.json"));
  await expect(createRepository(store, {}, never)).rejects.toMatchObject({
    kind: "usage",
    code: "E_REPOSITORY_EXISTS",
  });
  expect(store.bytes("repository.json").equals(before)).toBe(true);
});

test("init into a place with other things is refused", async () => {
  const store = new MemoryStore();
  await store.put("holiday/photo.jpg", Buffer.from("x"), never);
  await expect(createRepository(store, {}, never)).rejects.toMatchObject({
    kind: "usage",
    code: "E_PREFIX_IN_USE",
  });
  expect([...store.objects.keys()]).toEqual(["holiday/photo.jpg"]);
});

/** Two at once: `put` waits for the other's look at the empty place; `honest` says whether create-only is honoured. */
class Racing extends MemoryStore {
  readonly #honest: boolean;
  #wins = Promise.withResolvers<undefined>();
  #puts = 0;

  constructor(honest: boolean) {
    super();
    this.#honest = honest;
  }

  override async put(key: string, body: Uint8Array, signal: AbortSignal): Promise<void> {
    if (++this.#puts === 2) this.#wins.resolve(undefined);
    await this.#wins.promise;
    await (this.#honest ? super.put(key, body, signal) : super.replace(key, body, signal));
  }
}

test.each([true, false])("two inits at once: one wins (create-only honoured: %s)", async (honest) => {
  const store = new Racing(honest);
  const both = await Promise.allSettled([
    createRepository(store, {}, never),
    createRepository(store, {}, never),
  ]);
  const won = both.filter((each) => each.status === "fulfilled");
  const lost = both.filter((each) => each.status === "rejected");
  expect(won.length).toBe(1);
  expect(lost[0]!.reason).toMatchObject({ kind: "usage", code: "E_REPOSITORY_EXISTS" });
  expect((await openRepository(store, never)).config).toEqual(won[0]!.value.config);
});

test("open: nothing there", async () => {
  const opening = openRepository(new MemoryStore(), never);
  await expect(opening).rejects.toMatchObject({ kind: "notFound", code: "E_NO_REPOSITORY" });
  await expect(opening).rejects.toThrow("run blockhaul init");
});

test("open: other things there", async () => {
  const store = new MemoryStore();
  await store.put("holiday/photo.jpg", Buffer.from("x"), never);
  await expect(openRepository(store, never)).rejects.toMatchObject({
    kind: "notFound",
    code: "E_NO_REPOSITORY",
  });
});

test("open: a repository without its repository.json", async () => {
  const store = new MemoryStore();
  await store.put("lost-and-found", Buffer.from("x"), never);
  await store.put(packKey(newUuid()), Buffer.from("x"), never);
  await expect(openRepository(store, never)).rejects.toMatchObject({
    kind: "corrupt",
    code: "E_REPOSITORY_INCOMPLETE",
  });
});

test("open: one that says it is encrypted and has no key", async () => {
  const store = new MemoryStore();
  const { config } = known.pass[0]!;
  await store.put("repository.json", encodeRecord({ ...config, encrypted: true }), never);
  await expect(openRepository(store, never)).rejects.toMatchObject({
    kind: "corrupt",
    code: "E_NO_KEYS",
  });
});

test("open: one bit of repository.json", async () => {
  const store = new MemoryStore();
  await createRepository(store, {}, never);
  store.bytes("repository.json")[30]! ^= 16;
  await expect(openRepository(store, never)).rejects.toMatchObject({ kind: "corrupt", code: "E_RECORD" });
});

test("init makes a directory that is not there yet", async () => {
  const path = await mkdtemp(join(tmpdir(), "blockhaul-config-"));
  const store = new DirectoryStore(join(path, "deep", "repository"));
  await expect(openRepository(store, never)).rejects.toMatchObject({ kind: "notFound" });
  const created = await createRepository(store, {}, never);
  expect((await openRepository(store, never)).config).toEqual(created.config);
  store.close();
  await rm(path, { recursive: true });
});

test("init on a bucket that is missing says so", async () => {
  const creating = createRepository(new MemoryStore({ missing: true }), {}, never);
  await expect(creating).rejects.toMatchObject({ kind: "notFound", code: "E_NO_BUCKET" });
});
