import { spawnSync } from "node:child_process";
import { copyFile, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { KiB, MiB } from "../../src/bytes/size.ts";
import { runCli, runJson } from "../support/cli.ts";
import type { GenerationJson } from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage, patchImage } from "../support/images.ts";
import type { NbdProcess } from "../support/nbd-process.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";

const SIZE = 4 * MiB;
const CHUNK = 256 * KiB;
const STATS = [
  ...["bytesRead", "chunksRead", "bytesZero", "chunksZero", "bytesUnchanged", "chunksUnchanged"],
  ...["bytesDeduplicated", "chunksDeduplicated", "bytesStored", "bytesPacked", "chunksStored"],
];

let folder: string;
let env: Record<string, string>;
let image: string;
let server: NbdProcess;
/** Of "web", with what the disk held; the last one is of "other", the same as the second. */
let first: GenerationJson;
let second: GenerationJson;
let other: GenerationJson;

const json = <T>(...args: string[]): Promise<T> => runJson<T>(args, { env });

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "blockhaul-commands-"));
  env = { BLOCKHAUL_REPOSITORY: join(folder, "repository"), BLOCKHAUL_CACHE_DIR: join(folder, "cache") };
  image = join(folder, "web.raw");
  await makeImage(image, { size: SIZE, seed: 1, parts: [{ kind: "text", length: 3 * MiB }] });
  server = await startQemuNbd(["--read-only", "--format=raw", image], { exportName: "web" });
  await json("init");
  first = await json<GenerationJson>("backup", server.uri, "--tag", "a=1");

  await copy("1");
  await patchImage(image, [{ offset: CHUNK, length: 2 * CHUNK, seed: 2 }]);
  second = await json<GenerationJson>("backup", server.uri);
  await copy("2");
  other = await json<GenerationJson>("backup", server.uri, "--name", "other");
});

afterAll(async () => {
  await server.stop();
  await rm(folder, { recursive: true, force: true });
});

async function copy(number: string): Promise<void> {
  await copyFile(image, `${image}.${number}`);
}

describe("a generation is named by", () => {
  /** UUIDv7 begins with the time: what two of them share is no unique prefix. */
  function uniquePrefix(wanted: string): string {
    const others = [first, second, other].map(({ generation }) => generation).filter((id) => id !== wanted);
    for (let length = 4; ; length++) {
      const prefix = wanted.slice(0, length);
      if (!others.some((id) => id.startsWith(prefix))) return prefix;
    }
  }

  test.each<[string, () => [name: string, wanted: GenerationJson]]>([
    ["its id", () => [first.generation, first]],
    ["a unique prefix of the id", () => [uniquePrefix(first.generation), first]],
    ["NAME", () => ["web", second]],
    ["NAME@latest", () => ["other@latest", other]],
    ["NAME@TIME", () => [`web@${timeOf(first)}`, first]],
    ["NAME@TIME with a zone", () => [`web@2999-12-31T23:59+02:00`, second]],
    ["NAME@DAY", () => ["web@2999-12-31", second]],
  ])("%s", async (_, named) => {
    const [name, wanted] = named();
    const target = join(await temporaryFolder(), "restored.raw");
    const restored = await json("restore", name, "--to", target);
    expect(restored).toMatchObject({ generation: wanted.generation });
    expect(await compareFiles(target, `${image}.${wanted === first ? 1 : 2}`)).toBeUndefined();
  });

  test("latest, while there is one source", async () => {
    const ambiguous = await runCli(["show", "latest"], { env });
    expect(ambiguous).toMatchObject({ code: 2, stdout: "" });
    expect(ambiguous.stderr).toContain("say which: other@latest, web@latest");
  });
});

/** When the generation's id was made, which is what NAME@TIME goes by. */
function timeOf({ generation }: GenerationJson): string {
  return new Date(parseInt(generation.replaceAll("-", "").slice(0, 12), 16)).toISOString();
}

describe("documents have the fields that README.md promises", () => {
  const generationFields = [
    ...["generation", "source", "kind", "reason", "parent", "sequence", "createdAt", "consistency", "tags"],
    ...["held", "disks", "stats"],
  ];
  const runFields = ["seconds", "metadataBytes", "requests", "peakRssBytes"];

  test("list, show, backup: a generation", async () => {
    const { generations } = await json<{ generations: GenerationJson[] }>("list");
    expect(generations.map(({ generation }) => generation)).toEqual(
      [first, second, other].map(({ generation }) => generation),
    );
    expect(generations[0]).toMatchObject({ protectedUntil: null });
    expect(await json("show", first.generation)).toEqual({ ...generations[0], encrypted: false });
    for (const one of [...generations, first, second, other]) {
      expect(Object.keys(one)).toEqual(expect.arrayContaining(generationFields));
      expect(Object.keys(one.stats)).toEqual(expect.arrayContaining([...STATS, ...runFields]));
      for (const disk of one.disks) {
        const fields = ["name", "size", "chunkSize", "kind", "reason", "layers", "counts"];
        expect(Object.keys(disk)).toEqual(expect.arrayContaining(fields));
      }
    }
    expect(generations[0]).toMatchObject({ source: "web", kind: "full", parent: null, tags: { a: "1" } });
    expect(generations[1]).toMatchObject({ parent: first.generation, consistency: "unknown" });
    expect(generations[1]!.stats).toMatchObject({ bytesStored: 2 * CHUNK, chunksStored: 2 });
    const ofOther = await json<{ generations: GenerationJson[] }>("list", "--source", "other");
    expect(ofOther.generations).toMatchObject([{ generation: other.generation }]);
  });

  test("restore, verify, diff, stats, doctor, init", async () => {
    const target = join(await temporaryFolder(), "restored.raw");
    expect(await json("restore", "web", "--to", target)).toEqual({
      generation: second.generation,
      source: "web",
      disk: "web",
      target,
      stats: expect.objectContaining({ bytes: SIZE, bytesWritten: 3 * MiB, bytesZero: MiB }) as object,
    });
    expect(await json("verify", "web", first.generation, "--read-data=100%")).toEqual({
      generations: 2,
      packs: 2,
      chunks: 14,
      chunksRead: 14,
      packsRead: 2,
      bytesRead: expect.any(Number) as number,
      ...{ problems: [], problemsLeftOut: 0, losses: [], advice: [] },
      ...{ slotsBad: 0, slotsRecorded: 0, slotsHealed: 0, transient: 0 },
    });
    expect(await json("verify")).toMatchObject({ generations: 3, chunks: 14, chunksRead: 0, bytesRead: 0 });
    expect(await json("diff", first.generation, "web")).toEqual({
      before: first.generation,
      after: second.generation,
      disk: "web",
      bytes: 2 * CHUNK,
      count: 1,
      ranges: [{ offset: CHUNK, length: 2 * CHUNK }],
    });
    const stats = await json<{ packs: { count: number } }>("stats");
    expect(stats).toMatchObject({ sources: 2, generations: 3, logicalBytes: 3 * SIZE, packs: { count: 2 } });
    const { findings } = await json<{ findings: { check: string; status: string }[] }>("doctor", server.uri);
    expect(findings.filter(({ status }) => status !== "ok")).toEqual([]);
    expect(findings.map(({ check }) => check)).toEqual(expect.arrayContaining(["repository", "export"]));
    const location = join(await temporaryFolder(), "new");
    expect(await json("init", "-r", location, "--chunk-size", "64KiB")).toEqual({
      repository: expect.stringMatching(/^[0-9a-f-]{36}$/) as string,
      location: expect.stringContaining(location) as string,
      chunkSize: 64 * KiB,
      encrypted: false,
      objectLock: null,
    });
  });

  test("errors and remarks are lines of JSON on stderr", async () => {
    const { code, stdout, stderr } = await runCli(["show", "nothing", "--json"], { env });
    expect({ code, stdout }).toEqual({ code: 10, stdout: "" });
    expect(JSON.parse(stderr)).toMatchObject({
      level: "error",
      kind: "notFound",
      code: "E_NO_GENERATION",
      message: expect.stringContaining('"nothing"') as string,
      context: {},
    });
  });
});

describe("for people", () => {
  test.each<[string, () => string[], () => (string | RegExp)[]]>([
    [
      "list",
      () => ["list"],
      () => [first.generation, second.generation, "READ", "rescan", /full .*first generation of web/],
    ],
    ["show", () => ["show", "other"], () => [other.generation, "4.0 MiB", "first generation of other"]],
    [
      "diff",
      () => ["diff", first.generation, "web"],
      () => ["512 KiB of web differ, in 1 ranges", `${CHUNK}`],
    ],
    ["stats", () => ["stats"], () => ["3 generations of 2 sources", "packs", "2 objects"]],
    ["verify", () => ["verify"], () => ["3 generations, 2 packs, 14 chunks in use", "No problems found"]],
  ])("%s", async (_, args, expected) => {
    const { code, stdout, stderr } = await runCli(args(), { env });
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    for (const part of expected()) expect(stdout).toMatch(part);
  });
});

describe("a warning", () => {
  test("ends in exit code 16 with --strict", async () => {
    // a cache folder that cannot be one: advice only, so the run goes on without
    const wrong = { ...env, BLOCKHAUL_CACHE_DIR: join(folder, "web.raw") };
    const lax = await runCli(["backup", server.uri], { env: wrong });
    expect(lax.code).toBe(0);
    expect(lax.stderr).toContain("warning: ");
    const strict = await runCli(["backup", server.uri, "--strict"], { env: wrong });
    expect(strict.code).toBe(16);
    expect(strict.stdout).toContain("Generation ");
  });
});

test("the completion script completes commands, flags and files in bash", async () => {
  const { stdout, code } = await runCli(["completion", "bash"]);
  expect(code).toBe(0);
  const complete = (...words: string[]): string[] => {
    const script = `${stdout}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _blockhaul; printf '%s\\n' "\${COMPREPLY[@]}"; complete -p blockhaul >&2`;
    const done = spawnSync("bash", ["-c", script, "bash", ...words], { cwd: folder, encoding: "utf8" });
    expect(done.stderr).toBe("complete -o filenames -F _blockhaul blockhaul\n");
    return done.stdout.trim().split("\n").sort();
  };
  expect(complete("blockhaul", "rest")).toEqual(["restore", "restore-generation"]);
  expect(complete("blockhaul", "restore", "--in")).toEqual(["--in-place"]);
  const { stdout: help } = await runCli(["--help"]);
  const commands = [...help.matchAll(/^ {2}([a-z]+)(?:\|\w+)? .*$/gm)].map(([, name]) => name!);
  expect(commands.length).toBeGreaterThanOrEqual(12);
  expect(complete("blockhaul", "")).toEqual(
    expect.arrayContaining(commands.filter((name) => !["help", "blockhaul", "qemu"].includes(name))),
  );
  expect(complete("blockhaul", "restore", "--f")).toEqual(["--force"]);
  expect(complete("blockhaul", "bitmap", "")).toEqual(["add", "list", "ranges", "remove"]);
  expect(complete("blockhaul", "bitmap", "add", "--gr")).toEqual(["--granularity"]);
  expect(complete("blockhaul", "bitmap", "remove", "--f")).toEqual(["--force"]);
  expect(complete("blockhaul", "bitmap", "list", "--f")).toEqual([""]);
  expect(complete("blockhaul", "backup", "--dr")).toEqual(["--dry-run"]);
  expect(complete("blockhaul", "restore", "web", "web.raw.")).toEqual(["web.raw.1", "web.raw.2"]);
});
