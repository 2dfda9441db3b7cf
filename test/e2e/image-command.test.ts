import { randomBytes } from "node:crypto";
import { chmod, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { beforeEach, describe, expect, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { compareFiles } from "../support/images.ts";
import { runCli, type CliResult } from "../support/cli.ts";
import { createQcow2, keepTruth, qemuImg, qemuIo, type GenerationJson } from "../support/exported-images.ts";
import { expectFailure } from "../support/failures.ts";
import { temporaryFolder } from "../support/folder.ts";
import { bitmapsIn, serverOf } from "../support/image-backups.ts";
import { directoryRepository, type TestRepository } from "../support/repositories.ts";

let folder: string;
let image: string;
let repository: TestRepository;

beforeEach(async () => {
  folder = await temporaryFolder();
  repository = await directoryRepository();
  image = join(folder, "web.qcow2");
  await createQcow2(image, 16 * MiB);
  await qemuIo("qcow2", image, "write -P 1 0 1M");
});

async function backUp(...args: string[]): Promise<GenerationJson> {
  return await repository.json<GenerationJson>("backup", ...args);
}

async function expectRestores({ generation }: GenerationJson, disk = image): Promise<void> {
  const [restored, truth] = [join(folder, `${generation}.raw`), join(folder, "truth.raw")];
  await repository.json("restore", generation, "--to", restored);
  await keepTruth("qcow2", disk, truth);
  expect(await compareFiles(restored, truth)).toBeUndefined();
}

test("image:PATH is a source: named by its file, planned, backed up, restored", async () => {
  const first = await backUp(`image:${image}`);
  expect(first).toMatchObject({ source: "web", kind: "full", disks: [{ name: "web", size: 16 * MiB }] });
  expect(await repository.json("doctor", `image:${image}`)).toMatchObject({
    findings: expect.arrayContaining([
      expect.objectContaining({
        check: "image",
        detail: `${16 * MiB} bytes, qcow2, 0 images below, 1 dirty bitmaps; no VM runs on it`,
      }),
    ]) as object[],
  });
  await qemuIo("qcow2", image, "write -P 2 8M 1M");
  const plan = await repository.json("plan", `image:${image}`);
  expect(plan).toMatchObject({ disks: [{ name: "web", kind: "incremental", read: { max: MiB } }] });
  const second = await backUp(`image:${image}`);
  expect(second).toMatchObject({ kind: "incremental", stats: { bytesRead: MiB } });
  await expectRestores(second);
});

test("the flags, and a file of jobs", async () => {
  const [vda, vdb] = [join(folder, "a.qcow2"), join(folder, "b")];
  await createQcow2(vda, MiB);
  await writeFile(vdb, Buffer.alloc(MiB, 2));
  const disks = ["--disk", `vda=image:${vda}`, "--disk", `vdb=image:${vdb}`];
  const told = await repository.run("backup", "--name", "db", ...disks);
  expectFailure(told, 2, `The name of ${vdb} does not tell its format`);
  const bitmap = await repository.run("backup", `image:${image}`, "--bitmap", "b1");
  expectFailure(bitmap, 2, "--bitmap and --parent are for NBD exports");
  const others = await repository.run("backup", "nbd://h/x", "--leave-images");
  expectFailure(others, 2, "--format and --leave-images are for images");
  const made = await backUp("--name", "db", ...disks, "--format", "raw", "--leave-images");
  expect(made.disks.map(({ name }) => name)).toEqual(["vda", "vdb"]);

  const file = join(folder, "blockhaul.yaml");
  await writeFile(
    file,
    `
repositories: { main: { url: ${repository.location} } }
sources:
  web: { uris: { vda: "image:${vda}" }, leave_images: true }
jobs: { nightly: { repository: main, sources: [web] } }
`,
  );
  const { code, stderr } = await repository.run("run", "--config", file);
  expect(code, stderr).toBe(0);
  expect((await repository.json<GenerationJson>("show", "web")).disks).toMatchObject([{ name: "vda" }]);
  expect(await bitmapsIn(vda)).toEqual([]);
});

describe("without leave to", () => {
  /** Root, but not above what files' modes say. */
  const AS_OTHERS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"];
  const run = (...args: string[]) => runCli(["backup", ...args], { env: repository.env, under: AS_OTHERS });

  test("read: refused", async () => {
    await chmod(image, 0o000);
    expectFailure(await run(`image:${image}`), 14, `Image ${image} cannot be read: EACCES`);
  });

  test("write: read, with a warning that there will be no bitmap", async () => {
    await chmod(image, 0o444);
    const { code, stderr, stdout } = await run(`image:${image}`);
    expect(code, stderr).toBe(0);
    expect(stderr).toContain(`Image ${image} gets no bitmap, which the next incremental would go by: EACCES`);
    expect(stdout).toContain("full: first generation of web");
    expect(await bitmapsIn(image)).toEqual([]);
  });
});

describe("a run that is killed", () => {
  /** A program before the real one on the path, which does this first. */
  async function before(program: string, script: string): Promise<Record<string, string>> {
    const programs = join(folder, "programs");
    await mkdir(programs);
    const path = join(programs, program);
    await writeFile(path, `#!/bin/sh\n${script}\nPATH="\${PATH#*${delimiter}}" exec ${program} "$@"\n`);
    await chmod(path, 0o755);
    return { PATH: `${programs}${delimiter}${process.env["PATH"]!}` };
  }

  /** What takes its time to be stored. */
  async function writeMuch(): Promise<void> {
    const random = join(folder, "random");
    await writeFile(random, randomBytes(MiB));
    await qemuIo("qcow2", image, `write -s ${random} 8M 1M`);
    await rm(random);
  }

  /** Ends a slow run when all that changed was read, and little of it is stored. */
  async function stoppedBy(signal: NodeJS.Signals): Promise<CliResult> {
    const wasRead = async (): Promise<boolean> => {
      const server = await serverOf(image);
      const counters = await readFile(`/proc/${server}/io`, "utf8").catch(() => "");
      return Number(/^rchar: (\d+)/m.exec(counters)?.[1] ?? 0) > MiB;
    };
    return await runCli(["backup", `image:${image}`, "--limit-upload", "512KiB"], {
      env: repository.env,
      started: (child) => void vi.waitUntil(wasRead, { timeout: 20_000 }).finally(() => child.kill(signal)),
    });
  }

  const killedBefore =
    (program: string, script: string): (() => Promise<CliResult>) =>
    async () =>
      await runCli(["backup", `image:${image}`], {
        env: { ...repository.env, ...(await before(program, script)) },
      });

  const NODE = "$(ps -o ppid= -p $PPID)"; // between it and qemu-nbd is the shell that has that on its leash

  test.each([
    [
      "as it begins the bitmap",
      killedBefore("qemu-img", `case "$*" in *--add*) kill -9 $PPID;; esac`),
      2 * MiB,
    ],
    ["as it opens the image", killedBefore("qemu-nbd", `kill -9 ${NODE}`), 2 * MiB],
    ["while it reads", () => stoppedBy("SIGKILL"), 2 * MiB],
    [
      "when it has committed",
      killedBefore("qemu-img", `case "$*" in *--remove*) kill -9 $PPID; exit 1;; esac`),
      MiB,
    ],
  ])("%s", async (_, kill, bytesRead) => {
    const first = await backUp(`image:${image}`);
    const [of] = await bitmapsIn(image);
    await writeMuch();
    expect((await kill()).signal).toBe("SIGKILL");
    // soon it is nobody's any more
    await vi.waitUntil(async () => (await serverOf(image)) === undefined, { timeout: 20_000 });
    await vi.waitUntil(async () => (await bitmapsIn(image).catch(() => [])).length === 2, {
      timeout: 20_000,
    });
    expect(await bitmapsIn(image)).toContain(of);

    await qemuIo("qcow2", image, "write -P 3 10M 1M");
    const next = await backUp(`image:${image}`);
    expect(next).toMatchObject({ kind: "incremental", stats: { bytesRead } });
    expect(next.parent === first.generation).toBe(bytesRead === 2 * MiB);
    expect(await bitmapsIn(image)).toEqual([expect.stringContaining(next.generation)]);
    await expectRestores(next);
    expect(await qemuImg("check", image)).toContain("No errors were found");
  });

  test("or stopped by Ctrl-C in between: what it began is taken down", async () => {
    await backUp(`image:${image}`);
    const bitmaps = await bitmapsIn(image);
    await writeMuch();
    expectFailure(await stoppedBy("SIGINT"), 130);
    expect(await serverOf(image)).toBeUndefined();
    expect(await bitmapsIn(image)).toEqual(bitmaps);
    expect(await readdir(folder)).toEqual(["web.qcow2"]);
  });
});
