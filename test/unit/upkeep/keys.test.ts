import { beforeAll, describe, expect, test } from "vitest";
import { createRepository, openRepository } from "../../../src/repository/config.ts";
import { keySlotKey, newUuid } from "../../../src/repository/names.ts";
import { addKey, changePassword, listKeys, removeKey } from "../../../src/upkeep/keys.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { firstKey, given, typed } from "../../support/passwords.ts";

const never = new AbortController().signal;
const newPassword = (text: string) => (): Promise<Buffer> => Promise.resolve(Buffer.from(text));
const owner = { label: "safe", host: "vm" };

/** With two keys, "one" and "two"; tests work on copies. */
let made: MemoryStore;
let firstId: string;
let secondId: string;

beforeAll(async () => {
  made = new MemoryStore();
  await createRepository(made, {}, never, firstKey("one"));
  firstId = (await listKeys(made, undefined, never))[0]!.id;
  secondId = (await addKey(made, given("one"), newPassword("two"), owner, never)).key;
});

function copyOf(store: MemoryStore): MemoryStore {
  const copy = new MemoryStore();
  for (const [key, { bytes, lastModified }] of store.objects) {
    copy.objects.set(key, { bytes: Buffer.from(bytes), lastModified });
  }
  return copy;
}

async function opens(store: MemoryStore, password: string): Promise<boolean> {
  return await openRepository(store, never, given(password)).then(
    () => true,
    () => false,
  );
}

describe("add", () => {
  test("both passwords open the same repository", async () => {
    const [one, two] = [
      await openRepository(made, never, given("one")),
      await openRepository(made, never, given("two")),
    ];
    expect(two.sealer.chunkKeys).toEqual(one.sealer.chunkKeys);
  });

  test("needs a password that opens it", async () => {
    const store = copyOf(made);
    const adding = addKey(store, given("wrong"), newPassword("three"), owner, never);
    await expect(adding).rejects.toMatchObject({ kind: "credentials", code: "E_PASSWORD" });
    expect(store.objects.size).toBe(made.objects.size);
  });
});

describe("list", () => {
  test("says which one the password opens, and which nobody with the master key made", async () => {
    const store = copyOf(made);
    const junk = newUuid();
    await store.put(keySlotKey(junk), Buffer.from("junk"), never);
    const keys = await listKeys(store, given("two"), never);
    expect(Object.fromEntries(keys.map(({ id, status }) => [id, status]))).toEqual({
      [firstId]: "sealed",
      [secondId]: "opened",
      [junk]: "foreign",
    });
    expect(keys.find(({ id }) => id === secondId)!.slot).toMatchObject({ label: "safe", host: "vm" });
    expect(keys.find(({ id }) => id === junk)!.damage).toMatchObject({ code: "E_RECORD" });
  });

  test("without a password they are not checked", async () => {
    const keys = await listKeys(made, undefined, never);
    expect(keys.map(({ status }) => status)).toEqual(["unchecked", "unchecked"]);
  });

  test("a plain repository has none", async () => {
    const plain = new MemoryStore();
    await createRepository(plain, {}, never);
    for (const password of [undefined, typed("x")]) {
      await expect(listKeys(plain, password, never)).rejects.toMatchObject({ code: "E_NO_PASSWORDS" });
    }
    await expect(listKeys(plain, given("x"), never)).rejects.toMatchObject({ code: "E_NOT_ENCRYPTED" });
  });
});

describe("remove", () => {
  test("by the start of an id: its password opens no more", async () => {
    const store = copyOf(made);
    expect(await removeKey(store, given("two"), firstId.slice(0, 13), never)).toBe(firstId);
    expect([await opens(store, "one"), await opens(store, "two")]).toEqual([false, true]);
  });

  test("never the last one; junk does not count as another", async () => {
    const store = copyOf(made);
    await removeKey(store, given("two"), firstId, never);
    await store.put(keySlotKey(newUuid()), Buffer.from("junk"), never);
    const removing = removeKey(store, given("two"), secondId, never);
    await expect(removing).rejects.toMatchObject({ kind: "usage", code: "E_LAST_KEY" });
    expect(await opens(store, "two")).toBe(true);
  });

  test("two that remove each other's last key leave at least one", async () => {
    const store = copyOf(made);
    const met = Promise.withResolvers<undefined>();
    let waiting = 0;
    const meet = async (operation: string): Promise<void> => {
      if (operation !== "delete") return;
      if (++waiting === 2) met.resolve(undefined);
      await met.promise;
    };
    await Promise.allSettled([
      removeKey(new HookedStore(store, { before: meet }), given("two"), firstId, never),
      removeKey(new HookedStore(store, { before: meet }), given("one"), secondId, never),
    ]);
    expect((await opens(store, "one")) || (await opens(store, "two"))).toBe(true);
  });

  test("what is not there, and what is not clear", async () => {
    for (const wanted of ["ffff", ""]) {
      const removing = removeKey(made, given("two"), wanted, never);
      await expect(removing).rejects.toMatchObject({ kind: "notFound", code: "E_NO_KEY" });
    }
    const store = copyOf(made);
    await store.put(
      keySlotKey(`${firstId.slice(0, 35)}${firstId.endsWith("0") ? "1" : "0"}`),
      Buffer.from("x"),
      never,
    );
    const removing = removeKey(store, given("two"), firstId.slice(0, 35), never);
    await expect(removing).rejects.toMatchObject({ kind: "usage", code: "E_KEY_AMBIGUOUS" });
  });
});

describe("passwd", () => {
  test("the new password opens, the old one no more, others stay", async () => {
    const store = copyOf(made);
    const changed = await changePassword(store, given("one"), newPassword("three"), "vm2", never);
    expect(changed.removed.key).toBe(firstId);
    expect(changed.added).toMatchObject({ label: "first", host: "vm2" });
    const opening = ["one", "two", "three"].map((password) => opens(store, password));
    expect(await Promise.all(opening)).toEqual([false, true, true]);
    expect(store.objects.size).toBe(made.objects.size);
  });

  test("killed before the old key is removed, both open", async () => {
    const store = copyOf(made);
    const dying = new HookedStore(store, {
      before: (operation) => {
        if (operation === "delete") throw new Error("killed");
      },
    });
    await expect(changePassword(dying, given("one"), newPassword("three"), "vm", never)).rejects.toThrow(
      "killed",
    );
    expect([await opens(store, "one"), await opens(store, "three")]).toEqual([true, true]);
  });
});
