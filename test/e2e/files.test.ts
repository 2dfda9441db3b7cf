import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import {
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  readlink,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { runCli, type CliResult } from "../support/cli.ts";
import { temporaryFolder } from "../support/folder.ts";
import { loopDevicesWork } from "../support/loop-device.ts";
import { gptHead } from "../support/partition-tables.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";
import { programFor, type TestRepository } from "../support/repositories.ts";

const run = promisify(execFile);
/** e2fsprogs is where users without root do not look. */
const env = { ...process.env, PATH: `${process.env["PATH"]}:/usr/sbin:/sbin` };
/** Where they do not, as in some containers, the program has to say so: that is what is tested then. */
const MOUNTS_WORK = loopDevicesWork() && existsSync("/dev/fuse");

let folder: string;
let scratch: string;
let repository: TestRepository;

/** A disk with a GPT: an ext4 with some files, a swap, and an ext4 that is empty. */
async function makeImage(): Promise<string> {
  const files = join(folder, "files");
  await mkdir(join(files, "etc/deep"), { recursive: true });
  await writeFile(join(files, "etc/passwd"), "the guest's own");
  await writeFile(join(files, "etc/deep/\u001b[31mred\n"), "");
  await symlink("/etc/passwd", join(files, "link"));
  const image = join(folder, "web.raw");
  const disk = await open(image, "w");
  await disk.truncate(32 * MiB);
  const sectors = 16 * 1024;
  const head = gptHead([
    { first: 2048, sectors },
    { first: 2048 + sectors, sectors: 2048 },
    { first: 4096 + sectors, sectors },
  ]);
  await disk.write(head, 0, head.length, 0);
  await disk.write(Buffer.from("SWAPSPACE2"), 0, 10, (2048 + sectors) * 512 + 4086);
  for (const [at, more] of [[2048, ["-d", files]] as const, [4096 + sectors, []] as const]) {
    const volume = join(folder, "volume.raw");
    await writeFile(volume, "");
    await truncate(volume, sectors * 512);
    await run("mkfs.ext4", ["-q", "-F", ...more, volume], { env });
    const bytes = await readFile(volume);
    await disk.write(bytes, 0, bytes.length, at * 512);
    await rm(volume);
  }
  await disk.close();
  return image;
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "files-"));
  scratch = join(folder, "scratch");
  await mkdir(scratch);
  repository = programFor(join(folder, "repository"), { BLOCKHAUL_CACHE_DIR: join(folder, "cache") });
  await repository.run("init");
  const server = await startQemuNbd(["--read-only", "--format=raw", await makeImage()], {
    exportName: "web",
  });
  await repository.json("backup", server.uri).finally(() => server.stop());
});

afterAll(() => rm(folder, { recursive: true, force: true }));

/** Runs it, and looks whether anything is left. Where nothing can be mounted it must say so. */
async function blockhaul(...args: string[]): Promise<CliResult | undefined> {
  const result = await repository.run(...args, "--scratch", scratch);
  await expectNothingLeft();
  if (MOUNTS_WORK || result.code === 0) return result;
  expect(result.code).toBe(2);
  expect(result.stderr).toMatch(/nbdfuse|--raw/);
  return undefined;
}

async function expectNothingLeft(): Promise<void> {
  expect(await readdir(scratch)).toEqual([]);
  expect(await readFile("/proc/mounts", "utf8")).not.toContain(folder);
}

describe("files", () => {
  test("ls: the volumes, and what is in a folder", async () => {
    const volumes = await blockhaul("files", "ls", "web");
    expect(volumes!.stdout.split("\n").map((line) => line.replace(/ +/g, " "))).toEqual([
      "VOLUME KIND SIZE",
      "web:1 ext 8.0 MiB",
      "web:2 swap 1.0 MiB",
      "web:3 ext 8.0 MiB",
      "",
    ]);
    const listed = await blockhaul("files", "ls", "web", "/", "--volume", "web:1");
    expect(listed?.stdout ?? "l0777 15 link -> /etc/passwd").toMatch(/l0777 .* link -> \/etc\/passwd$/m);
    const deep = await blockhaul("files", "ls", "web", "etc/deep", "--volume", "web:1");
    expect(deep?.stdout ?? String.raw`\u{1b}[31mred\u{a}`).toContain(String.raw`\u{1b}[31mred\u{a}`);
  });

  test("ls says which volume it needs to be told, and what is not there", async () => {
    for (const [args, code, error] of [
      [["/"], 2, /several volumes.*web:1 \(ext\), web:2 \(swap\), web:3 \(ext\)/],
      [["/", "--volume", "web:2"], 10, /web:2 is none that has files/],
      [["/", "--volume", "web:9"], 10, /No volume web:9/],
    ] as const) {
      const result = await repository.run("files", "ls", "web", ...args, "--scratch", scratch);
      expect(result).toMatchObject({ code, stderr: expect.stringMatching(error) as string });
    }
    const none = await blockhaul("files", "ls", "web", "/nowhere", "--volume", "web:1");
    expect(none?.code ?? 10).toBe(10);
  });

  test("cp: a file by a link that this host has too, a folder, and never over anything", async () => {
    const target = await temporaryFolder();
    const copy = (...args: string[]): Promise<CliResult | undefined> =>
      blockhaul("files", "cp", "web", ...args, "--volume", "web:1", "--json");
    const first = await copy("link", join(target, "passwd"));
    if (first === undefined) return;
    expect(first.code, first.stderr).toBe(0);
    expect(await readFile(join(target, "passwd"), "utf8")).toBe("the guest's own");
    expect((JSON.parse(first.stdout) as { bytesFetched: number }).bytesFetched).toBeGreaterThan(0);
    expect((await copy("/", join(target, "all")))!.code).toBe(0);
    expect(await readlink(join(target, "all/link"))).toBe("/etc/passwd");
    expect(await readdir(join(target, "all/etc/deep"))).toEqual(["\u001b[31mred\n"]);
    expect(await copy("link", join(target, "passwd"))).toMatchObject({ code: 2 });
    expect((await copy("etc/../../../etc", target))!.code).toBe(0); // into the folder, under its own name
    expect(await readdir(join(target, "etc"))).toEqual(["deep", "passwd"]);
  });
});

interface MountedJson {
  readonly mounts: readonly { readonly volume: string; readonly path: string }[];
}

/** Mounts, does `work` once all is there, and waits for the end. Undefined where nothing can be mounted. */
async function whileMounted(
  args: readonly string[],
  work: (mounted: MountedJson, end: (signal: NodeJS.Signals) => void) => Promise<unknown>,
): Promise<CliResult | undefined> {
  const dir = await temporaryFolder();
  let working: Promise<unknown> = Promise.resolve();
  const result = await runCli(["mount", "web", dir, ...args, "--scratch", scratch, "--json"], {
    env: repository.env,
    started: (child) => {
      onTestFinished(() => void child.kill("SIGTERM"));
      let said = "";
      child.stdout!.on("data", (text) => {
        said += String(text);
        if (!said.endsWith("\n}\n")) return;
        working = work(JSON.parse(said) as MountedJson, (signal) => child.kill(signal));
        working.catch(() => child.kill("SIGTERM"));
      });
    },
  });
  await working;
  await expectNothingLeft();
  expect(await readFile("/proc/mounts", "utf8")).not.toContain(dir);
  expect(await readdir(dir)).toEqual([]);
  if (MOUNTS_WORK) return result;
  expect(result).toMatchObject({ code: 2 });
  return undefined;
}

describe("mount", () => {
  test("files are read, until SIGINT", async () => {
    const result = await whileMounted([], async ({ mounts }, end) => {
      expect(mounts.map(({ volume }) => volume)).toEqual(["web:1", "web:3"]);
      const [first] = mounts;
      expect(await readFile(join(first!.path, "etc/passwd"), "utf8")).toBe("the guest's own");
      await expect(writeFile(join(first!.path, "new"), "x")).rejects.toMatchObject({ code: "EROFS" });
      end("SIGINT");
    });
    expect(result?.code ?? 0, result?.stderr).toBe(0);
  });

  test("it ends when everything is unmounted by hand", async () => {
    const result = await whileMounted([], async ({ mounts }) => {
      for (const { path } of mounts) await run("umount", [path]);
    });
    expect(result?.code ?? 0, result?.stderr).toBe(0);
  });

  test("--raw: the disk and its partitions as files", async () => {
    const result = await whileMounted(["--raw"], async ({ mounts }, end) => {
      expect(mounts.map(({ volume }) => volume)).toEqual(["web", "web:1", "web:2", "web:3"]);
      const disk = mounts[0]!.path;
      expect((await stat(disk)).size).toBe(32 * MiB);
      expect((await readFile(disk)).equals(await readFile(join(folder, "web.raw")))).toBe(true);
      end("SIGTERM");
    });
    expect(result?.code ?? 0, result?.stderr).toBe(0);
  });

  test("where nbdfuse is not, it says so", async () => {
    const dir = await temporaryFolder();
    const args = ["mount", "web", dir, "--scratch", scratch];
    const result = await runCli(args, { env: { ...repository.env, PATH: dir } });
    expect(result.code).toBe(2);
    expect(result.stderr).toMatch(/nbdfuse is not installed.*apt install libnbd-bin/);
    await expectNothingLeft();
    expect(await readdir(dir)).toEqual([]);
  });

  test("only in an empty folder that is there", async () => {
    for (const [dir, why] of [
      [folder, /is not empty/],
      [join(folder, "none"), /is not there/],
    ] as const) {
      const { code, stderr } = await repository.run("mount", "web", dir, "--scratch", scratch);
      expect(code).toBe(2);
      expect(stderr).toMatch(why);
    }
  });
});
