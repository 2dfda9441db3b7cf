import { execFile } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { chmod, mkdir, mkdtemp, open, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { runCli, type CliResult } from "../support/cli.ts";
import { backUpRaw, qemuImg } from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { fsck, makeDisk } from "../support/guest/disk.ts";
import { gptHead } from "../support/partition-tables.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";
import { directoryRepository, keysUnder, programFor, type TestRepository } from "../support/repositories.ts";

const GUEST = resolve(import.meta.dirname, "../../.cache/guest");
/** What a boot loader on the disk would do. */
const BOOT = [
  ...["-kernel", join(GUEST, "vmlinuz"), "-initrd", join(GUEST, "initrd.gz")],
  ...["-append", "console=ttyS0 quiet panic=-1 cryptomgr.notests writer=1"],
].flatMap((argument) => ["--qemu-argument", argument]);
/** e2fsprogs is where users without root do not look. */
const SBIN = { ...process.env, PATH: `${process.env["PATH"]}:/usr/sbin:/sbin` };
/** The machine stands still: nothing is ever seen of it. */
const STILL = ["--qemu-argument", "-S"];

interface DrillJson {
  readonly source: string;
  readonly generation: string;
  readonly outcome: string;
  readonly proofs: readonly { readonly kind: string; readonly seconds: number | null }[];
  readonly error: { readonly code: string; readonly message: string } | null;
  readonly accelerator: string | null;
  readonly seconds: number;
  readonly bytesFetched: number;
  readonly bytesWritten: number;
  readonly recorded: boolean;
  readonly console: string;
  readonly volumes: readonly { readonly volume: string; readonly kind: string; readonly outcome: string }[];
}

/** A repository with one generation of "web", and a folder for what drills write. */
interface Place {
  readonly repository: TestRepository;
  readonly scratch: string;
}

async function placeWith(
  backUp: (repository: TestRepository, folder: string) => Promise<unknown>,
): Promise<Place> {
  const [repository, folder] = [await directoryRepository(), await temporaryFolder()];
  await backUp(repository, folder);
  return { repository, scratch: await temporaryFolder() };
}

async function drill(
  { repository, scratch }: Place,
  ...args: string[]
): Promise<CliResult & { json: DrillJson }> {
  const flags = ["--accel", "tcg", "--memory", "384MiB", "--cpus", "1", "--scratch", scratch];
  const result = await repository.run("drill", "web", ...flags, ...args, "--json");
  await expectNothingLeft(scratch);
  return { ...result, json: JSON.parse(result.stdout === "" ? "null" : result.stdout) as DrillJson };
}

/** No file, mount, or process. */
async function expectNothingLeft(scratch: string): Promise<void> {
  expect(await readdir(scratch)).toEqual([]);
  expect(await readFile("/proc/mounts", "utf8")).not.toContain(scratch);
  expect(processesOf(scratch)).toEqual([]);
}

/** Command lines of processes that name the folder, the program's own left out. */
function processesOf(folder: string): string[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
      } catch {
        return ""; // it has ended
      }
    })
    .filter((line) => line.includes(folder) && !line.includes("blockhaul.js"));
}

describe("a guest", () => {
  let folder: string;
  let place: Place;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "drill-"));
    const [scratch, cache] = [join(folder, "scratch"), join(folder, "cache")];
    await mkdir(scratch);
    const repository = programFor(join(folder, "repository"), { BLOCKHAUL_CACHE_DIR: cache });
    place = { repository, scratch };
    // as the test guest wants it, without a boot loader
    const image = await makeDisk(join(folder, "web.qcow2"), 64 * MiB);
    await repository.run("init");
    const server = await startQemuNbd(["--read-only", "--format=qcow2", image], { exportName: "web" });
    await repository.json("backup", server.uri).finally(() => server.stop());
  });

  afterAll(() => rm(folder, { recursive: true, force: true }));

  test("that comes up: passed, measured, recorded, shown by list", async () => {
    const { code, json, stderr } = await drill(place, ...BOOT, "--console", "^GUEST: READY", "--agent");
    expect(code, stderr).toBe(0);
    expect(json).toMatchObject({
      source: "web",
      outcome: "passed",
      error: null,
      accelerator: "tcg",
      recorded: true,
    });
    expect(json.proofs.map(({ kind }) => kind)).toEqual(["agent", "console"]);
    for (const { seconds } of json.proofs) expect(seconds).toBeGreaterThan(0);
    expect(json.bytesFetched).toBeGreaterThan(0);
    const { drills } = await place.repository.json<{ drills: DrillJson[] }>("list");
    expect(drills).toMatchObject([{ source: "web", outcome: "passed", proofs: json.proofs }]);
    const { stdout } = await place.repository.run("list");
    expect(stdout).toMatch(/^web +\S+Z +passed +\S+ +agent after \d+\.\d s, console after \d+\.\d s$/m);
    expect(await keysUnder(place.repository, "runs/web/")).toContainEqual(
      expect.stringMatching(/\.drill\.json$/),
    );
  });

  test("that cannot boot: failed at once, with its last words and a record", async () => {
    const { code, json, stderr } = await drill(place);
    expect(code, stderr).toBe(14);
    expect(json).toMatchObject({
      outcome: "failed",
      proofs: [{ kind: "agent", seconds: null }],
      error: { code: "E_DRILL_CONSOLE" },
      recorded: true,
    });
    expect(json.console).toMatch(/No bootable device/);
    const { stdout } = await place.repository.run("list");
    expect(stdout).toMatch(/^web .* failed .* no agent .*No bootable device/m);
  });

  test("that is silent: failed when the time is over", async () => {
    const { code, json } = await drill(place, ...STILL, "--timeout", "3s");
    expect(code).toBe(14);
    expect(json).toMatchObject({
      outcome: "failed",
      error: { code: "E_DRILL_TIMEOUT", message: "After 3 s the guest agent had not answered" },
    });
  });

  test.each([0, 3])("a script that ends with %i, and what it is told", async (ending) => {
    const folder = await temporaryFolder();
    const [script, told] = [join(folder, "script.sh"), join(folder, "told")];
    // what it leaves running is ended too: it names the scratch folder, by the disks
    const lines = [
      "#!/bin/sh",
      `nbdinfo --size "$DRILL_DISKS" >${told}`,
      `test -S "$DRILL_AGENT" && echo "$DRILL_SOURCE" >>${told}`,
      `sh -c 'sleep 1000; : '"$DRILL_AGENT" &`,
      `echo last words`,
      `exit ${ending}`,
    ];
    await writeFile(script, lines.join("\n"));
    await chmod(script, 0o755);
    const { code, json } = await drill(place, ...STILL, "--script", script);
    expect(await readFile(told, "utf8")).toBe(`${64 * MiB}\nweb\n`);
    expect(code).toBe(ending === 0 ? 0 : 14);
    const message = `${script} ended with 3: last words`;
    expect(json.error).toEqual(ending === 0 ? null : { code: "E_DRILL_SCRIPT", message });
  });

  test("an interrupted drill leaves nothing, and counts as none", async () => {
    const { repository, scratch } = place;
    const before = (await keysUnder(repository, "runs/")).filter((key) => key.endsWith(".drill.json"));
    const args = ["drill", "web", "--accel", "tcg", "--scratch", scratch, ...STILL];
    const { code } = await runCli(args, {
      env: repository.env,
      started: (child) => {
        const up = vi.waitUntil(() => processesOf(scratch).length > 0, { timeout: 30_000, interval: 20 });
        void up.then(() => child.kill("SIGINT"));
        onTestFinished(() => void child.kill("SIGKILL"));
      },
    });
    expect(code).toBe(130);
    await expectNothingLeft(scratch);
    expect((await keysUnder(repository, "runs/")).filter((key) => key.endsWith(".drill.json"))).toEqual(
      before,
    );
  });

  test.each([
    [["--qemu", "/nowhere/qemu"], 2, "E_DRILL_NO_QEMU"],
    [[...STILL, "--script", "/nowhere/script"], 2, "E_DRILL_SCRIPT_FILE"],
    [["--qemu-argument", "-nonsense"], 14, "E_DRILL_QEMU"],
    [["--scratch", "/nowhere"], 2, "E_SCRATCH"],
    [["--console", "("], 2, "E_FLAG"],
    [["--timeout", "25h"], 2, "E_FLAG"],
    [["--no-boot", "--agent"], 2, "E_FLAG"],
  ])("no drill, and no record of one: %j", async (args, wanted, error) => {
    const before = (await keysUnder(place.repository, "runs/")).filter((key) => key.endsWith(".drill.json"));
    const { code, stdout, stderr } = await drill(place, ...args);
    expect(code, stderr).toBe(wanted);
    expect(stdout).toBe("");
    expect(stderr).toContain(`"${error}"`);
    expect((await keysUnder(place.repository, "runs/")).filter((key) => key.endsWith(".drill.json"))).toEqual(
      before,
    );
  });
});

test("damaged data: failed as such, by its own exit code", async () => {
  const place = await placeWith(async (repository, folder) => {
    const image = join(folder, "web.raw");
    await writeFile(image, Buffer.alloc(MiB, 0xaa)); // its first sector is read by the firmware
    await backUpRaw(repository, image);
  });
  const [pack] = await keysUnder(place.repository, "packs/");
  const file = await open(join(place.repository.location, pack!), "r+");
  await file.write(Buffer.from([0xff, 0xff, 0xff]), 0, 3, 20);
  await file.close();
  const { code, json, stderr } = await drill(place, "--timeout", "30s");
  expect(code, stderr).toBe(13);
  expect(json).toMatchObject({ outcome: "failed", recorded: true });
});

describe("without a boot", () => {
  /** A GPT with an ext4 of 16 MiB in the first partition, nothing in the second. */
  async function partitioned(
    folder: string,
    spoil: (image: string, at: number) => Promise<void>,
  ): Promise<string> {
    const image = join(folder, "web.raw");
    const qcow2 = await makeDisk(join(folder, "ext4.qcow2"), 16 * MiB);
    await qemuImg("convert", "-O", "raw", qcow2, join(folder, "ext4.raw"));
    const file = await open(image, "w");
    await file.truncate(24 * MiB);
    const entries = [
      { first: 2048, sectors: 32 * 1024 },
      { first: 36864, sectors: 2048 },
    ];
    const head = gptHead(entries);
    await file.write(head, 0, head.length, 0);
    const ext4 = await readFile(join(folder, "ext4.raw"));
    await file.write(ext4, 0, ext4.length, MiB);
    await file.close();
    await spoil(image, MiB);
    return image;
  }

  test("a sound file system in a partition passes", async () => {
    const place = await placeWith(async (repository, folder) =>
      backUpRaw(repository, await partitioned(folder, () => Promise.resolve())),
    );
    const { code, json, stderr } = await drill(place, "--no-boot");
    expect(code, stderr).toBe(0);
    expect(json).toMatchObject({ outcome: "passed", proofs: [{ kind: "files" }], accelerator: null });
    expect(json.volumes).toMatchObject([
      { volume: "web:1", kind: "ext", outcome: "sound" },
      { volume: "web:2", kind: null, outcome: "unchecked" },
    ]);
  });

  test.each([
    ["bitmaps", 2, 2],
    ["group descriptors", 1, 1],
  ])("a damaged one fails: %s", async (_, block, blocks) => {
    const place = await placeWith(async (repository, folder) => {
      const image = await partitioned(folder, async (path, at) => {
        const file = await open(path, "r+");
        const length = blocks * 4096;
        await file.write(Buffer.alloc(length, 0x5a), 0, length, at + block * 4096);
        await file.close();
      });
      await backUpRaw(repository, image);
    });
    const { code, json, stderr } = await drill(place, "--no-boot");
    expect(code, stderr).toBe(14);
    expect(json).toMatchObject({ outcome: "failed", error: { code: "E_DRILL_FILES" }, recorded: true });
    expect(json.volumes[0]).toMatchObject({ volume: "web:1", outcome: "damaged" });
  });

  test("what a journal has still to put right is no damage", async () => {
    const place = await placeWith(async (repository, folder) => {
      const image = join(folder, "web.raw");
      await qemuImg("convert", "-O", "raw", await makeDisk(join(folder, "ext4.qcow2"), 16 * MiB), image);
      const debugfs = async (...commands: string[]): Promise<string> => {
        const args = commands.flatMap((command) => ["-R", command]);
        return (await promisify(execFile)("debugfs", ["-w", ...args, image], { env: SBIN })).stdout;
      };
      const block = Number(/^\d+/.exec(await debugfs("blocks /"))![0]);
      const [file, root] = [await open(image, "r+"), Buffer.alloc(4096)];
      await file.read(root, 0, 4096, block * 4096);
      await writeFile(join(folder, "root"), root);
      await writeFile(join(folder, "commands"), `jo\njw -b ${block} ${join(folder, "root")}\njc\n`);
      await promisify(execFile)("debugfs", ["-w", "-f", join(folder, "commands"), image], { env: SBIN });
      await file.write(Buffer.alloc(4096), 0, 4096, block * 4096);
      await file.close();
      expect(await fsck(image)).not.toMatchObject({ code: 0 });
      await backUpRaw(repository, image);
    });
    const { code, json, stderr } = await drill(place, "--no-boot");
    expect(code, stderr).toBe(0);
    expect(json.volumes).toMatchObject([{ volume: "web", kind: "ext", outcome: "sound" }]);
    expect(json.bytesWritten).toBeGreaterThan(0);
  });

  test("where there is nothing to check, nothing is proven", async () => {
    const place = await placeWith(async (repository, folder) => {
      const image = join(folder, "web.raw");
      await writeFile(image, Buffer.alloc(MiB, 0xaa));
      await backUpRaw(repository, image);
    });
    const { code, stderr } = await drill(place, "--no-boot");
    expect(code).toBe(14);
    expect(stderr).toContain("E_DRILL_NO_CHECK");
  });
});
