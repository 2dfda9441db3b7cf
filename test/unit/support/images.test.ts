import { open, stat } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { zstdCompressSync } from "node:zlib";
import { KiB, MiB } from "../../../src/bytes/size.ts";
import { temporaryFolder } from "../../support/folder.ts";
import { compareFiles, makeImage, patchImage, sha256OfFile } from "../../support/images.ts";

const PLAN = {
  size: 5 * MiB + 512,
  parts: [
    { kind: "random", length: MiB + 100 },
    { kind: "hole", length: MiB },
    { kind: "program", length: MiB },
    { kind: "text", length: MiB },
  ],
  seed: 1,
} as const;

async function bytesOf(path: string, offset: number, length: number): Promise<Buffer> {
  const file = await open(path);
  const bytes = Buffer.alloc(length);
  await file.read(bytes, 0, length, offset);
  await file.close();
  return bytes;
}

test("one plan makes one image, another seed another; parts are what they are called", async () => {
  const folder = await temporaryFolder();
  const [a, b, c] = ["a", "b", "c"].map((name) => join(folder, name)) as [string, string, string];
  await makeImage(a, PLAN);
  await makeImage(b, PLAN);
  await makeImage(c, { ...PLAN, seed: 2 });
  expect(await sha256OfFile(a)).toBe(await sha256OfFile(b));
  expect(await compareFiles(a, b)).toBeUndefined();
  expect(await compareFiles(a, c)).toContain("mismatch");
  const { size, blocks } = await stat(a);
  expect(size).toBe(PLAN.size);
  expect(blocks * 512).toBeLessThan(size - MiB); // holes take no space
  const packed = async (offset: number): Promise<number> =>
    zstdCompressSync(await bytesOf(a, offset, 512 * KiB)).length / (512 * KiB);
  expect(await packed(0)).toBeGreaterThan(0.99);
  expect(await packed(3 * MiB + 200)).toBeLessThan(0.5);
  expect((await bytesOf(a, MiB + 100, MiB)).every((byte) => byte === 0)).toBe(true);
  expect((await bytesOf(a, 2 * MiB + 100, MiB)).every((byte) => byte === 0)).toBe(false);
});

test("two parts of one kind are not alike", async () => {
  const folder = await temporaryFolder();
  const path = join(folder, "a");
  for (const kind of ["random", "program", "text"] as const) {
    const part = { kind, length: 64 * KiB };
    await makeImage(path, { size: 128 * KiB, parts: [part, part], seed: 1 });
    const bytes = await bytesOf(path, 0, 128 * KiB);
    expect(bytes.subarray(0, 64 * KiB).equals(bytes.subarray(64 * KiB))).toBe(false);
  }
});

test("a patch changes what it names and nothing else; the comparison sees one bit", async () => {
  const folder = await temporaryFolder();
  const [a, b] = [join(folder, "a"), join(folder, "b")];
  await makeImage(a, { ...PLAN, size: 5 * MiB });
  await makeImage(b, { ...PLAN, size: 5 * MiB });
  const before = await bytesOf(b, 0, 5 * MiB);
  await patchImage(b, [
    { offset: 1000, bytes: Buffer.from("here") },
    { offset: 2 * MiB, length: 100_000, seed: 5 },
  ]);
  const after = await bytesOf(b, 0, 5 * MiB);
  expect(after.subarray(1000, 1004).toString()).toBe("here");
  expect(after.subarray(2 * MiB, 2 * MiB + 100_000).equals(before.subarray(2 * MiB, 2 * MiB + 100_000))).toBe(
    false,
  );
  after.set(before.subarray(1000, 1004), 1000);
  after.set(before.subarray(2 * MiB, 2 * MiB + 100_000), 2 * MiB);
  expect(after.equals(before)).toBe(true);

  const hole = Buffer.from([1]);
  await patchImage(a, [{ offset: 5 * MiB - 1, bytes: hole }]);
  await makeImage(b, { ...PLAN, size: 5 * MiB });
  expect(await compareFiles(a, b)).toContain("mismatch");
  await patchImage(b, [{ offset: 5 * MiB - 1, bytes: hole }]);
  expect(await compareFiles(a, b)).toBeUndefined();
  await makeImage(b, { ...PLAN, size: 6 * MiB });
  expect(await compareFiles(a, b)).toContain("bytes");
});
