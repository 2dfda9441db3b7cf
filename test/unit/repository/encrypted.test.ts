import { beforeAll, describe, expect, test } from "vitest";
import { createRepository, openRepository, readConfig } from "../../../src/repository/config.ts";
import { KEY_SLOTS_MAX, NO_PASSWORD } from "../../../src/repository/key-slots.ts";
import { keySlotKey, newUuid, packKey } from "../../../src/repository/names.ts";
import { decodeRecord, encodeRecord } from "../../../src/repository/record.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { firstKey, given, typed } from "../../support/passwords.ts";

const never = new AbortController().signal;
const PASSWORD = "correct horse";

/** Made once: each costs two derivations. Tests work on copies. */
let made: MemoryStore;
let other: MemoryStore;

beforeAll(async () => {
  [made, other] = [new MemoryStore(), new MemoryStore()];
  await createRepository(made, {}, never, firstKey(PASSWORD));
  await createRepository(other, {}, never, firstKey(PASSWORD));
});

function copyOf(store: MemoryStore): MemoryStore {
  const copy = new MemoryStore();
  for (const [key, { bytes, lastModified }] of store.objects) {
    copy.objects.set(key, { bytes: Buffer.from(bytes), lastModified });
  }
  return copy;
}

function keyOf(store: MemoryStore): string {
  return [...store.objects.keys()].find((key) => key.startsWith("keys/"))!;
}

/** Changes fields of a stored record, with a checksum that fits. */
async function rewrite(store: MemoryStore, key: string, fields: object): Promise<void> {
  const document = decodeRecord(store.bytes(key), key);
  const { sha256, ...rest } = { ...document, ...fields } as Record<string, unknown>;
  expect(sha256).toBeUndefined();
  await store.replace(key, encodeRecord(rest), never);
}

describe("open", () => {
  test("with the password: what is sealed by one session opens in the next", async () => {
    const first = await openRepository(made, never, given(PASSWORD));
    const second = await openRepository(made, never, typed(PASSWORD));
    const sealed = first.sealer.sealObject("run", "runs/x", Buffer.from("secret"));
    expect(second.sealer.openObject("run", "runs/x", sealed).toString()).toBe("secret");
    expect(second.sealer.chunkKeys).toEqual(first.sealer.chunkKeys);
    expect(first.config.encrypted).toBe(true);
    expect([...made.objects.keys()].sort()).toEqual([keyOf(made), "repository.json"]);
  });

  test("with another password says whose it is and what to look at", async () => {
    const opening = openRepository(made, never, given("wrong"));
    await expect(opening).rejects.toMatchObject({ kind: "credentials", code: "E_PASSWORD" });
    await expect(opening).rejects.toThrow(/memory; check BLOCKHAUL_PASSWORD$/);
  });

  test("without one says what to set", async () => {
    const opening = openRepository(made, never);
    await expect(opening).rejects.toMatchObject({ kind: "credentials", code: "E_PASSWORD_NEEDED" });
    await expect(opening).rejects.toThrow("BLOCKHAUL_PASSWORD_FILE");
  });

  test("a plain repository never asks for a password", async () => {
    const plain = new MemoryStore();
    await createRepository(plain, {}, never);
    const asks = { ...NO_PASSWORD, read: () => Promise.reject(new Error("asked")) };
    expect((await openRepository(plain, never, asks)).sealer.encrypted).toBe(false);
  });

  test("the password is overwritten when it has been used, also a wrong one", async () => {
    for (const text of [PASSWORD, "wrong"]) {
      const bytes = Buffer.from(text);
      const password = { ...given(""), read: () => Promise.resolve(bytes) };
      await openRepository(made, never, password).catch(() => undefined);
      expect(bytes.every((byte) => byte === 0)).toBe(true);
    }
  });
});

describe("R14", () => {
  test("a repository that claims to be plain is refused by whoever was given a password", async () => {
    const plain = new MemoryStore();
    await createRepository(plain, {}, never);
    const opening = openRepository(plain, never, given(PASSWORD));
    await expect(opening).rejects.toMatchObject({ kind: "credentials", code: "E_NOT_ENCRYPTED" });
  });

  test("so is one whose encryption was switched off", async () => {
    const store = copyOf(made);
    await rewrite(store, "repository.json", { encrypted: false });
    const opening = openRepository(store, never, given(PASSWORD));
    await expect(opening).rejects.toMatchObject({ kind: "credentials", code: "E_NOT_ENCRYPTED" });
  });

  test.each([
    ["chunk size", { chunkSize: 64 * 1024 }],
    ["pack size", { packSize: 32 * 1024 * 1024 }],
    ["time", { createdAt: "2020-01-01T00:00:00.000Z" }],
  ])("one whose repository.json was changed is refused: %s", async (_, fields) => {
    const store = copyOf(made);
    await rewrite(store, "repository.json", fields);
    const opening = openRepository(store, never, given(PASSWORD));
    await expect(opening).rejects.toMatchObject({ kind: "corrupt", code: "E_CONFIG_SEAL" });
  });

  test("and one whose id was changed", async () => {
    const store = copyOf(made);
    await rewrite(store, "repository.json", { repository: newUuid() });
    const opening = openRepository(store, never, given(PASSWORD));
    await expect(opening).rejects.toMatchObject({ kind: "corrupt", code: "E_MISPLACED" });
  });

  test("with the key's repository changed along, the key does not open", async () => {
    const store = copyOf(made);
    const repository = newUuid();
    await rewrite(store, "repository.json", { repository });
    await rewrite(store, keyOf(store), { repository });
    const opening = openRepository(store, never, given(PASSWORD));
    await expect(opening).rejects.toMatchObject({ code: "E_PASSWORD" });
  });

  test("the repository.json of another repository, of the same password", async () => {
    const store = copyOf(made);
    await store.replace("repository.json", other.bytes("repository.json"), never);
    const opening = openRepository(store, never, given(PASSWORD));
    await expect(opening).rejects.toMatchObject({ kind: "corrupt", code: "E_MISPLACED" });
  });
});

describe("slots", () => {
  test("swapped between two repositories of one password are refused", async () => {
    const store = copyOf(made);
    store.objects.delete(keyOf(store));
    await store.put(keyOf(other), other.bytes(keyOf(other)), never);
    const opening = openRepository(store, never, given(PASSWORD));
    await expect(opening).rejects.toMatchObject({ kind: "corrupt", code: "E_MISPLACED" });
    await rewrite(store, keyOf(other), { repository: (await readConfig(store, never)).config.repository });
    await expect(openRepository(store, never, given(PASSWORD))).rejects.toMatchObject({ code: "E_PASSWORD" });
  });

  test("copied to another name are refused", async () => {
    const store = copyOf(made);
    await store.put(keySlotKey(newUuid()), store.bytes(keyOf(store)), never);
    store.objects.delete(keyOf(store));
    const opening = openRepository(store, never, given(PASSWORD));
    await expect(opening).rejects.toMatchObject({ kind: "corrupt", code: "E_MISPLACED" });
  });

  test("that are damaged or foreign do not keep the others from opening", async () => {
    const store = copyOf(made);
    await store.put(keySlotKey("00000000-0000-4000-8000-000000000000"), Buffer.from("junk"), never);
    await store.put(keyOf(other), other.bytes(keyOf(other)), never);
    await store.put("keys/readme.txt", Buffer.from("not ours"), never);
    expect((await openRepository(store, never, given(PASSWORD))).config.encrypted).toBe(true);
    const opening = openRepository(store, never, given("wrong"));
    await expect(opening).rejects.toMatchObject({ code: "E_PASSWORD", context: { keys: 3, damaged: 2 } });
    await expect(opening).rejects.toThrow("2 of its keys could not be tried");
  });

  test("all of them gone is damage", async () => {
    const store = copyOf(made);
    store.objects.delete(keyOf(store));
    const opening = openRepository(store, never, given(PASSWORD));
    await expect(opening).rejects.toMatchObject({ kind: "corrupt", code: "E_NO_KEYS" });
  });

  test("of any size, or any number, are not read", async () => {
    const store = copyOf(made);
    await store.replace(keyOf(store), Buffer.alloc(17 * 1024, " "), never);
    const opening = openRepository(store, never, given(PASSWORD));
    await expect(opening).rejects.toMatchObject({ kind: "corrupt", code: "E_OBJECT_SIZE" });
    for (let count = 0; count < KEY_SLOTS_MAX; count++) {
      await store.put(keySlotKey(newUuid()), Buffer.from("junk"), never);
    }
    const flooded = openRepository(store, never, given(PASSWORD));
    await expect(flooded).rejects.toMatchObject({ kind: "corrupt", code: "E_TOO_MANY_KEYS" });
  });
});

describe("init", () => {
  test("the key is there before the repository is", async () => {
    const store = new MemoryStore();
    const puts: string[] = [];
    const hooked = new HookedStore(store, {
      after: (operation, key) => {
        if (operation === "put") puts.push(key);
      },
    });
    await createRepository(hooked, {}, never, firstKey(PASSWORD));
    expect(puts).toEqual([keyOf(store), "repository.json"]);
  });

  test("interrupted between the two, it leaves no repository, and can be run again", async () => {
    const store = new MemoryStore();
    const dying = new HookedStore(store, {
      before: (operation, key) => {
        if (operation === "put" && key === "repository.json") throw new Error("killed");
      },
    });
    await expect(createRepository(dying, {}, never, firstKey("first try"))).rejects.toThrow("killed");
    await expect(openRepository(store, never, given("first try"))).rejects.toMatchObject({
      kind: "notFound",
      code: "E_NO_REPOSITORY",
    });
    await createRepository(store, {}, never, firstKey(PASSWORD));
    expect(store.objects.size).toBe(3);
    expect((await openRepository(store, never, given(PASSWORD))).config.encrypted).toBe(true);
  });

  test("keys and a pack without a repository.json are a repository that lost it", async () => {
    const store = copyOf(made);
    store.objects.delete("repository.json");
    await store.put(packKey(newUuid()), Buffer.from("x"), never);
    await expect(openRepository(store, never, given(PASSWORD))).rejects.toMatchObject({
      code: "E_REPOSITORY_INCOMPLETE",
    });
    await expect(createRepository(store, {}, never)).rejects.toMatchObject({ code: "E_PREFIX_IN_USE" });
  });

  test.each([true, false])(
    "two at once: the winner's opens, the loser's key goes (both encrypted: %s)",
    async (both) => {
      const store = new MemoryStore();
      const looked = Promise.withResolvers<undefined>();
      let waiting = 0;
      // each waits before its commit until the other has come as far
      const meet = async (operation: string, key: string): Promise<void> => {
        if (operation !== "put" || key !== "repository.json") return;
        if (++waiting === 2) looked.resolve(undefined);
        await looked.promise;
      };
      const racers = [firstKey("one"), both ? firstKey("two") : undefined].map((first) =>
        createRepository(new HookedStore(store, { before: meet }), {}, never, first),
      );
      const results = await Promise.allSettled(racers);
      const won = results.findIndex(({ status }) => status === "fulfilled");
      expect(results[1 - won]).toMatchObject({ reason: { kind: "usage", code: "E_REPOSITORY_EXISTS" } });
      const password = ["one", both ? "two" : undefined][won];
      const opened = await openRepository(
        store,
        never,
        password === undefined ? NO_PASSWORD : given(password),
      );
      expect(opened.config.encrypted).toBe(password !== undefined);
      expect(store.objects.size).toBe(password === undefined ? 1 : 2);
    },
  );
});
