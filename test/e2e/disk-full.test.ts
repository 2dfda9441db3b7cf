import { copyFile, mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { runCli, type CliResult } from "../support/cli.ts";
import { backUpRaw, nbdkit, qemuNbd, type GenerationJson } from "../support/exported-images.ts";
import { expectFailure } from "../support/failures.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage, patchImage } from "../support/images.ts";
import { mountTmpfs, mountsWork } from "../support/mounts.ts";
import {
  cacheEnvironment,
  directoryRepository,
  keysUnder,
  programFor,
  type TestRepository,
} from "../support/repositories.ts";

interface Story {
  readonly repository: TestRepository;
  /** A backup that finds no room. */
  readonly failing: (uri: string) => Promise<CliResult>;
  readonly makeRoom: () => void;
}

/** A generation; one that does not fit; the first is unhurt; and with room the next run succeeds. */
async function expectFullThenFine({ repository, failing, makeRoom }: Story): Promise<void> {
  const folder = await temporaryFolder();
  const [image, truth, target] = ["web.raw", "truth.raw", "restored.raw"].map((name) => join(folder, name));
  await makeImage(image!, { size: 24 * MiB, seed: 1, parts: [{ kind: "random", length: 2 * MiB }] });
  await copyFile(image!, truth!);
  const first = await backUpRaw(repository, image!);
  await patchImage(image!, [{ offset: 4 * MiB, length: 16 * MiB, seed: 2 }]);
  const server = await qemuNbd("--format=raw", image!);
  expectFailure(await failing(server.uri), 15, repository.location, "free some space");
  expect(await keysUnder(repository, "generations/")).toHaveLength(1);
  const { generations } = await repository.json<{ generations: GenerationJson[] }>("list");
  expect(generations).toMatchObject([{ generation: first.generation }]);
  expect(await repository.json("verify", "--read-data")).toMatchObject({ problems: [] });
  await repository.json("restore", "web", "--to", target!);
  expect(await compareFiles(target!, truth!)).toBeUndefined();

  makeRoom();
  const second = await repository.json<GenerationJson>("backup", server.uri);
  expect(second).toMatchObject({ kind: "rescan", parent: first.generation });
  await repository.json("restore", second.generation, "--to", target!, "--force");
  expect(await compareFiles(target!, image!)).toBeUndefined();
  expect(await repository.json("verify", "--read-data")).toMatchObject({ generations: 2, problems: [] });
}

if (mountsWork()) {
  test("a full file system", async () => {
    const location = join(await temporaryFolder(), "repository");
    await mkdir(location);
    const mounted = mountTmpfs(location, 8 * MiB);
    const repository = programFor(location, await cacheEnvironment());
    await repository.json("init");
    const failing = (uri: string): Promise<CliResult> => repository.run("backup", uri);
    await expectFullThenFine({ repository, failing, makeRoom: () => mounted.resize(64 * MiB) });
  });

  test("a restore into a full file system: exit 15, and nothing under the target's name", async () => {
    const repository = await directoryRepository();
    const { uri } = await nbdkit(["--readonly", "pattern", "4M"], { exportName: "web" });
    await repository.json("backup", uri);
    const folder = join(await temporaryFolder(), "small");
    await mkdir(folder);
    mountTmpfs(folder, MiB);
    expectFailure(
      await repository.run("restore", "web", "--to", join(folder, "web.raw")),
      15,
      folder,
      "space",
    );
    expect(await readdir(folder)).toEqual([]);
  });
}

test("files that must not grow further", async () => {
  const repository = await directoryRepository();
  const failing = (uri: string): Promise<CliResult> =>
    runCli(["backup", uri], { env: repository.env, under: ["prlimit", `--fsize=${8 * MiB}`] });
  await expectFullThenFine({ repository, failing, makeRoom: () => undefined });
});
