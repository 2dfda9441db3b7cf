import { expect, test } from "vitest";
import { profileKey } from "../../../src/repository/names.ts";
import {
  decodeProfile,
  encodeProfile,
  loadProfile,
  storeProfile,
  type Profile,
} from "../../../src/repository/profiles.ts";
import { masterKeySealer } from "../../../src/repository/sealing.ts";
import { SEALINGS, TEST_REPOSITORY, memoryRepository } from "../../support/memory-repository.ts";
import { type MustFail, vectors } from "../../support/vectors.ts";

const never = new AbortController().signal;

const known = vectors("profiles") as {
  source: string;
  profile: string;
  pass: { name: string; encrypted: boolean; hex: string; content: Profile }[];
  fail: MustFail[];
};
const masterKey = Buffer.from(Array.from({ length: 32 }, (_, index) => index));
const plain = memoryRepository();
const sealed = { ...plain, sealer: masterKeySealer(TEST_REPOSITORY, masterKey) };

test.each(known.pass)("reads what another program wrote: $name", ({ hex, encrypted, content }) => {
  const bytes = Buffer.from(hex, "hex");
  expect(decodeProfile(encrypted ? sealed : plain, known.source, known.profile, bytes)).toEqual(content);
  if (!encrypted) expect(encodeProfile(plain, content).equals(bytes)).toBe(true);
});

test.each(known.fail)("refuses: $name", ({ hex, code }) => {
  const decode = (): unknown => decodeProfile(plain, known.source, known.profile, Buffer.from(hex, "hex"));
  expect(decode).toThrow(expect.objectContaining({ kind: "corrupt", code }));
});

test.each(SEALINGS)(
  "the newest counts, the others go; damage is passed over ($name)",
  async ({ encrypted }) => {
    const repository = memoryRepository({ encrypted });
    const { store } = repository;
    const { source, generation, disks, reads } = known.pass[0]!.content;
    expect(await loadProfile(repository, source, never)).toEqual({ profile: undefined, keys: [] });
    await storeProfile(repository, { source, generation, disks, reads }, [], never);
    const first = await loadProfile(repository, source, never);
    expect(first.profile).toMatchObject({ disks, reads });
    expect(first.keys).toEqual([profileKey(source, first.profile!.profile)]);
    expect(await loadProfile(repository, "db", never)).toEqual({ profile: undefined, keys: [] });

    await storeProfile(repository, { source, generation, disks, reads: [[1, 5, 1]] }, first.keys, never);
    const second = await loadProfile(repository, source, never);
    expect(second.profile?.reads).toEqual([[1, 5, 1]]);
    expect(second.keys).toHaveLength(1);

    const damaged = profileKey(source, known.profile);
    await store.put(damaged, Buffer.from("what is this"), never);
    const third = await loadProfile(repository, source, never);
    expect(third.profile).toEqual(second.profile);
    expect(new Set(third.keys)).toEqual(new Set([damaged, ...second.keys])); // and it is replaced with the others
  },
);
