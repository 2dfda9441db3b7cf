import { spawnSync } from "node:child_process";
import { chmod, chown, cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { EXIT_CODE, EXIT_WARNINGS } from "../../src/cli/exit-codes.ts";
import { runCli } from "../support/cli.ts";
import { parseWords } from "../support/command-lines.ts";
import { createQcow2, qemuIo } from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { startQemuVm } from "../support/qemu-vm.ts";
import { cacheEnvironment, directoryRepository, keysUnder } from "../support/repositories.ts";
import { MiB } from "../../src/bytes/size.ts";
import { confinedAs, readUnit, startArguments, UNITS } from "../support/units.ts";

/** Of the words that systemd-analyze has for it, "OK"; with network, root and a few more there is not much less. */
const EXPOSURE_MAX = 3.1;

const names = (await readdir(UNITS)).filter((name) => /\.(?:service|socket|timer)$/.test(name));
const services = names.filter((name) => name.endsWith(".service"));

let root: string;

/** A root with systemd's own units, which ours refer to, and a program in the place where ours has it. */
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "blockhaul-units-"));
  const own = join(root, "etc/systemd/system");
  await mkdir(join(root, "usr/bin"), { recursive: true });
  await writeFile(join(root, "usr/bin/blockhaul"), "", { mode: 0o755 });
  await cp("/usr/lib/systemd/system", join(root, "usr/lib/systemd/system"), { recursive: true });
  await mkdir(own, { recursive: true });
  for (const name of names) await cp(join(UNITS, name), join(own, name));
});
afterAll(() => rm(root, { recursive: true, force: true }));

function analyze(...args: string[]): { status: number | null; said: string } {
  const { status, stdout, stderr, error } = spawnSync("systemd-analyze", args, { encoding: "utf8" });
  if (error !== undefined) throw error;
  return { status, said: stderr + stdout };
}

test.each(names)("systemd takes %s as it is", (name) => {
  const verified = analyze("verify", "--man=no", `--root=${root}`, `/etc/systemd/system/${name}`);
  expect(verified).toEqual({ status: 0, said: "" });
});

describe.each(services)("%s", (name) => {
  const unit = readUnit(name);

  test("is exposed no more than it must be", () => {
    const { said } = analyze("security", "--offline=true", `--root=${root}`, name);
    const exposure = Number(/Overall exposure level for \S+: ([\d.]+)/.exec(said)?.[1]);
    expect(exposure, said).toBeLessThanOrEqual(EXPOSURE_MAX);
  });

  test("starts the program with arguments that it takes", async () => {
    const args = startArguments(unit, "web", { SOURCE: "qmp:/run/web/qmp.sock", FLAGS: "" });
    await parseWords(args);
  });

  test("leaves the guard of a run alone when it ends", () => {
    expect(unit.get("KillMode") ?? ["control-group"]).toEqual(["control-group"]);
  });
});

test("a timer's unit is there, and catches up", () => {
  for (const name of names.filter((one) => one.endsWith(".timer"))) {
    expect(names).toContain(name.replace(".timer", ".service"));
    const unit = readUnit(name);
    expect(unit.get("Persistent")).toEqual(["yes"]);
    expect(analyze("calendar", unit.get("OnCalendar")![0]!).status).toBe(0);
  }
});

test("only what may be over by itself is tried again", () => {
  const again = [EXIT_CODE.unavailable];
  const codes = [...new Set([EXIT_WARNINGS, ...Object.values(EXIT_CODE)])].filter(
    (code) => code !== 0 && !again.includes(code as never),
  );
  for (const name of ["blockhaul@.service", "blockhaul-run.service"]) {
    const prevented = readUnit(name).get("RestartPreventExitStatus")![0]!.split(" ").map(Number);
    expect(prevented.sort((a, b) => a - b)).toEqual(codes.sort((a, b) => a - b));
  }
});

test("a VM of another user is backed up within what blockhaul@.service leaves, and nothing stays behind", async () => {
  const unit = readUnit("blockhaul@.service");
  const repository = await directoryRepository();
  const disk = join(await temporaryFolder(), "disk.qcow2");
  await createQcow2(disk, 8 * MiB);
  await qemuIo("qcow2", disk, "write -P 7 0 3M");
  const vm = await startQemuVm({
    disks: [{ node: "vda", path: disk }],
    args: () => ["-runas", "nobody"],
  });
  onTestFinished(() => vm.stop());
  await chown(vm.qmp, 65_534, 65_534); // as if QEMU had made it after it became that user
  const scratch = await temporaryFolder();
  await chmod(scratch, 0o1777); // as /var/tmp is
  const cache = (await cacheEnvironment())["BLOCKHAUL_CACHE_DIR"]!;
  const env = { ...repository.env, BLOCKHAUL_CACHE_DIR: cache, HOME: "/nonexistent" };
  const args = startArguments(unit, "web-vm", {
    SOURCE: `qmp:${vm.qmp}`,
    FLAGS: `--scratch ${scratch} --freeze off`,
  });
  const { code, stderr } = await runCli(args, { env, under: confinedAs(unit, cache) });
  expect(stderr).toBe("");
  expect(code).toBe(0);
  expect(await keysUnder(repository, "generations/web-vm/")).toHaveLength(1);
  expect(await readdir(scratch)).toEqual([]);
  const [program, ...confined] = confinedAs(unit, cache);
  const elsewhere = spawnSync(program!, [...confined, "touch", "/usr/blockhaul"], { encoding: "utf8" });
  expect(elsewhere.stderr, "the confinement is one").toContain("Read-only file system");
});

test("the README has a line for each unit", async () => {
  const readme = await readFile(`${UNITS}/README.md`, "utf8");
  for (const name of names) expect(readme).toContain(`\`${name}\``);
});
