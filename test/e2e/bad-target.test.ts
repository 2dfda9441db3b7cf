import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, expect, onTestFinished, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import type { CliResult } from "../support/cli.ts";
import { nbdkit } from "../support/exported-images.ts";
import { expectFailure } from "../support/failures.ts";
import { temporaryFolder } from "../support/folder.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";
import { directoryRepository, type TestRepository } from "../support/repositories.ts";

const SIZE = 2 * MiB;

let repository: TestRepository;
let folder: string;

beforeEach(async () => {
  repository = await directoryRepository();
  folder = await temporaryFolder();
  const { uri } = await nbdkit(["--readonly", "pattern", `${SIZE}`], { exportName: "web" });
  await repository.json("backup", uri);
});

const restore = (...args: string[]): Promise<CliResult> => repository.run("restore", "web", "--to", ...args);

test("a file that is there, without --force, stays as it is", async () => {
  const file = join(folder, "precious");
  await writeFile(file, "precious");
  expectFailure(await restore(file), 2, file, "exists already", "--force");
  expectFailure(await restore(`qcow2:${file}`), 2, file, "exists already", "--force");
  expect(await readFile(file, "utf8")).toBe("precious");
  expect(await readdir(folder)).toEqual(["precious"]);
});

test("a folder, a place in a folder that is not there, or under a file", async () => {
  expectFailure(await restore(folder), 2, folder);
  expectFailure(await restore(`qcow2:${folder}`, "--force"), 2, folder);
  expectFailure(await restore(join(folder, "absent", "web.raw")), 10, join(folder, "absent"));
  expectFailure(await restore(`qcow2:${join(folder, "absent", "web.qcow2")}`), 10, join(folder, "absent"));
  expect(await readdir(folder)).toEqual([]);
});

test("an NBD export that is too small is left as it is; one that is read-only is refused", async () => {
  const file = join(folder, "small.raw");
  const garbage = Buffer.alloc(SIZE - 512, 0xaa);
  await writeFile(file, garbage);
  const small = await startQemuNbd(["--format=raw", file], { exportName: "target" });
  onTestFinished(() => small.stop());
  expectFailure(await restore(small.uri), 2, small.uri, `${SIZE - 512} bytes`, "at least as large");
  expect((await readFile(file)).equals(garbage)).toBe(true);

  const fixed = await nbdkit(["--readonly", "memory", `${SIZE}`]);
  expectFailure(await restore(fixed.uri), 2, fixed.uri, "read-only");
});

test("an NBD server that fails a write", async () => {
  const failing = await nbdkit([
    "--filter=error",
    "memory",
    `${SIZE}`,
    "error-pwrite=ENOSPC",
    "error-pwrite-rate=100%",
  ]);
  expectFailure(await restore(failing.uri), 14, failing.uri, "ENOSPC");
});
