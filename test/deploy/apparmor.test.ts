import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, matchesGlob, resolve } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { RunNames, newToken } from "../../src/qemu/names.ts";
import { needProgram } from "../support/s3-process.ts";

const FOLDER = resolve(import.meta.dirname, "../../deploy/apparmor");
const SCRATCH = "/var/lib/libvirt/blockhaul";

const additions = readFileSync(join(FOLDER, "libvirt-qemu"), "utf8");
const base = mkdtempSync(join(tmpdir(), "blockhaul-apparmor-"));
afterAll(() => rmSync(base, { recursive: true }));

/** What AppArmor's parser says of a profile with these lines; the kernel is not asked. */
function parse(lines: string): { status: number | null; stderr: string } {
  const args = ["--skip-kernel-load", "--skip-cache", "--base", base];
  const input = `profile blockhaul-test flags=(attach_disconnected) {\n${lines}}\n`;
  const { status, stderr } = spawnSync(needProgram("apparmor_parser"), args, { input, encoding: "utf8" });
  return { status, stderr };
}

/** The rights that the lines give to a path, sorted. */
function rightsOn(path: string): string {
  const rules = [...additions.matchAll(/^(\/\S+) (\w+),$/gm)];
  const rights = rules
    .filter(([, glob]) => matchesGlob(path, glob!))
    .flatMap(([, , letters]) => letters!.split(""));
  return [...new Set(rights)].sort().join("");
}

test("AppArmor's parser takes the lines, and would take no others", () => {
  expect(parse(additions).status).toBe(0);
  expect(parse(additions.replace(" rwk,", " rwq,")).status).not.toBe(0);
});

describe("they let QEMU", () => {
  const names = new RunNames(newToken());

  test("read, write and lock the scratch, and serve beside it", () => {
    expect(rightsOn(names.scratchFile(SCRATCH, 0))).toBe("krw");
    expect(rightsOn(names.socket(SCRATCH))).toBe("rw");
    expect(rightsOn("/run/blockhaul/qmp/web.sock")).toBe("rw");
  });

  test("reach nothing else there: not the run's own file, not another folder", () => {
    expect(rightsOn(names.runFile(SCRATCH))).toBe("");
    expect(rightsOn(names.scratchFile("/var/lib/libvirt", 0))).toBe("");
    expect(rightsOn(`${SCRATCH}/web.sock`)).toBe("");
    expect(rightsOn("/run/blockhaul/web.sock")).toBe("");
  });
});
