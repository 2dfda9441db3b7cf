import { once } from "node:events";
import { execFile, spawn } from "node:child_process";
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { existsSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import type { Command } from "commander";
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { EXIT_CODE, EXIT_WARNINGS } from "../../src/cli/exit-codes.ts";
import { buildProgram } from "../../src/cli/main.ts";
import { runCli } from "../support/cli.ts";
import { commandsBelow, parseLine } from "../support/command-lines.ts";
import { createQcow2, nbdkit, qemuImg, qemuIo } from "../support/exported-images.ts";
import { compareFiles } from "../support/images.ts";
import { attachLoop, loopDevicesWork } from "../support/loop-device.ts";
import { bootGuest } from "../support/guest/guest.ts";
import { Libvirt } from "../support/libvirt.ts";
import { TestDomain } from "../support/libvirt-domain.ts";
import { minioClient, startMinio } from "../support/minio.ts";
import { expectNoSecrets, secretsOf } from "../support/secrets.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";
import type { S3Server } from "../support/s3-process.ts";

// each test is many runs of the program, which a busy machine may take its time for
vi.setConfig({ testTimeout: 180_000 });

/** What looking at files needs: not in every container. */
const MOUNTS_WORK = loopDevicesWork() && existsSync("/dev/fuse");

const ROOT = resolve(import.meta.dirname, "../..");
const README = readFileSync(join(ROOT, "README.md"), "utf8");

/** Lines of the indented blocks, without comments. What stands between fences is for files. */
const BLOCK_LINES = README.replaceAll(/^```[^]*?^```$/gm, "")
  .split("\n")
  .filter((line) => line.startsWith("    "))
  .map((line) => line.trim().replace(/ +# .*$/, ""));

/** Arguments that QEMU is to be given. */
const QEMU_LINES = BLOCK_LINES.filter((line) => /^-\w+ /.test(line));

interface Listed {
  readonly generations: readonly {
    readonly generation: string;
    readonly sequence: number;
    readonly kind: string;
    readonly consistency: string;
  }[];
}

/** Code within the text and the tables. */
const INLINE = [...README.matchAll(/`([^`\n]+)`/g)].map(([, code]) => code!);

/** What README.md's VM has on its disk, and the test guest has not: a kernel, and that it boots it. */
function bootArguments(): string {
  const guest = join(ROOT, ".cache/guest");
  return ["-kernel", `${guest}/vmlinuz`, "-initrd", `${guest}/initrd.gz`, "-append", "'console=ttyS0 quiet'"]
    .map((argument) => `--qemu-argument ${argument}`)
    .join(" ");
}

function flagsOf(command: Command): string[] {
  return command.options.flatMap(({ long, short }) => [long, short].filter((flag) => flag !== undefined));
}

describe("what README.md and --help say is what the program knows", () => {
  test("every command line in README.md parses, whatever it needs to run", async () => {
    // also behind the times of a cron line, and what a shell would complete
    const lines = [...BLOCK_LINES, ...INLINE].flatMap(
      (line) => /\bblockhaul [a-z][^)]*/.exec(line)?.[0] ?? [],
    );
    expect(lines.length).toBeGreaterThan(15);
    for (const line of lines) await expect(parseLine(line), line).resolves.toBeUndefined();
    await expect(parseLine("blockhaul backup nbd://h/x --no-such-flag")).rejects.toThrow("--no-such-flag");
  });

  test("every flag that README.md names is one", () => {
    const program = buildProgram();
    const known = new Set([
      ...flagsOf(program),
      ...commandsBelow(program).flatMap(({ command }) => flagsOf(command)),
      "--help",
    ]);
    const others = /^(qemu-nbd|qemu-img|guestmount|npm|-\w+) /;
    const text = [...BLOCK_LINES, ...INLINE].filter((line) => !others.test(line)).join("\n");
    const named = [...text.matchAll(/(?<![\w-])--?[a-z][a-z-]*/g)].map(([flag]) => flag);
    expect(named.length).toBeGreaterThan(15);
    expect([...new Set(named)].filter((flag) => !known.has(flag))).toEqual([]);
  });

  test("every example of --help parses", async () => {
    const program = buildProgram();
    for (const path of [[], ...commandsBelow(program).map((one) => one.path)]) {
      const name = path.join(" ");
      const { stdout, code } = await runCli([...path, "--help"]);
      expect(code).toBe(0);
      const examples = [...stdout.matchAll(/^ {2}(blockhaul [a-z].*)$/gm)].map(([, line]) => line!);
      if (name !== "demo" && name !== "completion") expect(examples, name).not.toEqual([]);
      for (const line of examples) await expect(parseLine(line), line).resolves.toBeUndefined();
    }
  });

  test("the exit codes are those of src/cli/exit-codes.ts, in README.md and in --help", async () => {
    const codes = [0, EXIT_WARNINGS, ...Object.values(EXIT_CODE)];
    const wanted = [...new Set(codes)].sort((a, b) => a - b);
    const table = /## Exit codes\n([\s\S]*?)\n## /.exec(README)![1]!;
    expect([...table.matchAll(/^\| (\d+) +\|/gm)].map(([, code]) => Number(code))).toEqual(wanted);
    const { stdout } = await runCli(["--help"]);
    const help = /Exit codes: ([\s\S]*)/.exec(stdout)![1]!;
    expect([...help.matchAll(/(?<!\w)(\d+) [a-z]/g)].map(([, code]) => Number(code))).toEqual(wanted);
  });

  test("the environment variables are those of src/settings.ts, and files that are named exist", async () => {
    const settings = await readFile(join(ROOT, "src/settings.ts"), "utf8");
    const named = new Set([...README.matchAll(/BLOCKHAUL_[A-Z_]+/g)].map(([name]) => name));
    const read = [...settings.matchAll(/\["(BLOCKHAUL_[A-Z_]+)"\]/g)].map(([, name]) => name);
    const hooks = await readFile(join(ROOT, "src/jobs/hooks.ts"), "utf8");
    const told = [...hooks.matchAll(/^ +(BLOCKHAUL_[A-Z_]+): /gm)].map(([, name]) => name);
    expect([...named].sort()).toEqual([...new Set([...read, ...told])].sort());
    for (const path of INLINE.filter((code) => /^src\/\S+$/.test(code))) {
      await expect(readFile(join(ROOT, path)), path).resolves.toBeDefined();
    }
  });
});

describe("README.md, line by line", () => {
  let minio: S3Server;
  let folder: string;
  let env: Record<string, string>;

  beforeAll(async () => {
    minio = await startMinio();
    folder = await mkdtemp(join(tmpdir(), "blockhaul-readme-"));
    const program = join(folder, "blockhaul");
    await writeFile(program, `#!/bin/sh\nexec "${process.execPath}" "${ROOT}/bin/blockhaul.js" "$@"\n`);
    await chmod(program, 0o755);
    env = {
      ...minio.env,
      PATH: `${folder}:${process.env["PATH"] ?? ""}`,
      BLOCKHAUL_CACHE_DIR: join(folder, "cache"),
    };
  });

  afterAll(async () => {
    await minio.stop();
    await rm(folder, { recursive: true, force: true });
  });

  /** Runs one line in a shell; `export` and `unset` last. @throws Error when it fails. */
  async function shell(line: string): Promise<string> {
    const [, name, value] = /^export (\w+)=(.*)$/.exec(line) ?? [];
    if (name !== undefined) env[name] = value!;
    const [, unset] = /^unset (\w+)$/.exec(line) ?? [];
    if (unset !== undefined) env = Object.fromEntries(Object.entries(env).filter(([key]) => key !== unset));
    const run = promisify(execFile);
    const { stdout, stderr } = await run("bash", ["-c", line], {
      cwd: folder,
      env: { ...process.env, ...env },
    });
    expectNoSecrets(secretsOf(env), stdout + stderr, line);
    return stdout;
  }

  /** Starts a line that serves until it is ended. @param says when it is ready. @returns ends it. */
  async function serving(line: string, says: RegExp): Promise<() => Promise<void>> {
    const child = spawn("bash", ["-c", `exec ${line}`], { cwd: folder, env: { ...process.env, ...env } });
    const exited = once(child, "exit");
    onTestFinished(() => void child.kill("SIGKILL"));
    const [first] = (await Promise.race([once(child.stdout, "data"), exited])) as unknown[];
    expect(String(first), line).toMatch(says);
    return async () => {
      child.kill("SIGTERM");
      expect(await exited, line).toEqual([0, null]);
    };
  }

  test("all of it runs, from the first init to doctor", async () => {
    const bucket = await minio.createBucket("my-bucket");
    await minioClient(minio).makeBucket("my-locked-bucket", "us-east-1", { ObjectLocking: true });
    const [image, socket, pid] = ["web.qcow2", "web.sock", "pid"].map((name) => join(folder, name));
    await qemuImg("create", "-q", "-f", "qcow2", image!, "8M");
    await qemuIo("qcow2", image!, "write -P 1 0 3M", "write -P 2 5M 1M");
    await qemuImg("bitmap", "--add", image!, "b1");
    await mkdir(join(folder, "images"));
    for (const name of ["template", "a"]) await createQcow2(join(folder, `images/${name}.qcow2`), 8 * MiB);
    await writeFile(join(folder, "images/b.raw"), Buffer.alloc(MiB, 1));
    const target = await nbdkit(["memory", "8M"]);
    await writeFile(join(folder, "device"), Buffer.alloc(9 * MiB, 0xaa));
    const device = loopDevicesWork() ? attachLoop(join(folder, "device")) : join(folder, "device");
    const uri = `nbd+unix:///web?socket=${socket!}`;
    // README.md's arguments for QEMU, given to a real one
    const monitor = join(folder, "qmp.sock");
    for (const name of ["password", "second"]) await writeFile(join(folder, name), `${name} of the test\n`);
    const given = QEMU_LINES.map((line) => line.replace("/run/web/qmp.sock", monitor));
    const guest = await bootGuest({ args: given.find((line) => line.startsWith("-qmp "))!.split(" ") });
    const libvirt = await Libvirt.start();
    onTestFinished(() => libvirt.stop());
    await TestDomain.start(libvirt, "mail", [{ name: "vda", size: 4 * MiB }]);
    env["LIBVIRT_DEFAULT_URI"] = libvirt.uri;
    const mapped: readonly [RegExp, string][] = [
      [/qmp:\/run\/web\/qmp\.sock/, `qmp:${monitor}`],
      [/\/run\/web\/qga\.sock/, guest.agent],
      [/s3:\/\/my-bucket\//, `s3://${bucket}/`],
      [/\/vms\?endpoint=[^&']*/, `/others?endpoint=${minio.endpoint}`], // a second repository, by its URL alone
      [/\/run\/serve\.sock/, join(folder, "serve.sock")],
      [/\/var\/lib\/blockhaul/, folder],
      [/(?<=image:)\/var\/lib\/vm(?=\/)/g, join(folder, "images")],
      [/socket=\/(?:tmp|run)\/web\.sock/, `socket=${socket!}`],
      [/--fork/, `--fork --pid-file=${pid!}`],
      [/\/dev\/vg0\/web/, device],
      [/nbd:\/\/127\.0\.0\.1\/target/, `'${target.uri}'`],
      [/nbd:\/\/host\/web/, `'${uri}'`],
      [/--disk vda /, "--disk vd0 "],
      [/2026-11-2[12]T03:00Z/, new Date(Date.now() + 3_600_000).toISOString()],
      [/2026-11-2[12]/, "2999-12-31"],
      [/\/mnt\/web/, join(folder, "mnt")],
      [/^17 3 \* \* \* /, ""],
      [/^blockhaul drill web-vm$/, `blockhaul drill web-vm --accel tcg --memory 384MiB ${bootArguments()}`],
      [/\/etc\/blockhaul\//, `${folder}/`],
    ];
    onTestFinished(async () => {
      const serving = await readFile(pid!, "utf8").catch(() => "");
      if (serving !== "") process.kill(Number(serving));
    });
    const jobs = /```yaml\n([^`]*)```/.exec(README)![1]!;
    await writeFile(
      join(folder, "blockhaul.yaml"),
      mapped.reduce((text, [from, to]) => text.replace(from, () => to), jobs),
    );
    const ran: string[] = [];
    let served: (() => Promise<void>) | undefined;
    const notRun = BLOCK_LINES.filter((line) => /^(npm|-\w+) /.test(line) || line === "");
    for (const line of BLOCK_LINES.filter((one) => !notRun.includes(one))) {
      const concrete = mapped.reduce((text, [from, to]) => text.replace(from, () => to), line);
      const withBitmap = concrete.includes("--bitmap");
      if (concrete.startsWith("blockhaul restore-generation")) {
        // README.md names some generation that was forgotten; this is one
        const { generations } = JSON.parse(await shell("blockhaul list --source web --json")) as Listed;
        await shell(`blockhaul forget ${generations[0]!.generation}`);
        await shell(`blockhaul restore-generation ${generations[0]!.generation}`);
        ran.push(line);
        continue;
      }
      if (withBitmap) {
        // README.md exports the bitmap by fleecing; here an idle image takes its place
        const idle = Number(await readFile(pid!, "utf8"));
        process.kill(idle);
        await vi.waitUntil(() => !existsSync(`/proc/${idle}`), { timeout: 20_000 }); // and its lock on the image
        await rm(pid!);
        await qemuIo("qcow2", image!, "write -P 3 1M 64k");
        const server = await startQemuNbd(["--read-only", "--format=qcow2", "--bitmap=b1", image!], {
          exportName: "web",
        });
        onTestFinished(() => server.stop());
        await rm(socket!, { force: true });
        await shell(`ln -s ${server.socket} ${socket!}`);
      }
      if (concrete.startsWith("blockhaul serve ")) {
        await served?.();
        served = await serving(concrete, /^nbd\+unix:/);
        ran.push(line);
        continue;
      }
      ran.push(line);
      const mounts = /^blockhaul (mount|files \w+ \S+ \/)/.test(concrete);
      if (mounts && !MOUNTS_WORK) continue;
      if (concrete.startsWith("blockhaul mount ")) {
        await mkdir(join(folder, "mnt"));
        const end = await serving(concrete, /^VOLUME/);
        expect(await readFile(join(folder, "mnt/vd0/seq"), "utf8")).toMatch(/^\d{8}$/);
        await end();
        continue;
      }
      const stdout = await shell(concrete);
      if (withBitmap) expect(stdout).toMatch(/incremental: bitmap b1 since generation/);
    }
    await served?.();
    expect(ran.filter((line) => line.startsWith("blockhaul ")).length).toBeGreaterThanOrEqual(15);
    expect(notRun.map((line) => line.split(" ").slice(0, 2).join(" "))).toEqual([
      "npm run",
      "npm ci",
      "npm link",
      ...QEMU_LINES.map((line) => line.split(" ").slice(0, 2).join(" ")),
    ]);
    const { generations } = JSON.parse(await shell("blockhaul list --source web-vm --json")) as Listed;
    // the full and the first incremental went with the job's rules, which keep one of a day
    expect(generations.map(({ sequence, kind, consistency }) => [sequence, kind, consistency])).toEqual([
      [3, "incremental", "filesystem"],
      [4, "incremental", "filesystem"],
    ]);
    const mail = JSON.parse(await shell("blockhaul list --source mail --json")) as Listed;
    expect(mail.generations.at(-1)!.kind).toBe("incremental");
    await qemuImg("convert", "-O", "raw", image!, join(folder, "truth.raw"));
    expect(await compareFiles(join(folder, "web.raw"), join(folder, "truth.raw"))).toBeUndefined();
  });

  test("the demo shows what it promises", async () => {
    const { code, stdout, stderr } = await runCli(["demo", "--size", "64MiB"], { env });
    expect(code, stderr).toBe(0);
    expect(stderr.match(/equal, byte for byte/g)).toHaveLength(2);
    expect(stdout).toMatch(/^2 generations, 128 MiB/);
  });
});
