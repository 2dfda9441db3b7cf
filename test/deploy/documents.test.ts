import { existsSync, readFileSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { describe, expect, test } from "vitest";
import { parseLine } from "../support/command-lines.ts";

const ROOT = resolve(import.meta.dirname, "../..");

const entries = await readdir(join(ROOT, "deploy"), { withFileTypes: true });
const folders = entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);

function page(folder: string): string {
  return readFileSync(join(ROOT, "deploy", folder, "README.md"), "utf8");
}

test("README.md has a line for all that is under deploy/", () => {
  const readme = readFileSync(join(ROOT, "README.md"), "utf8");
  const named = [...readme.matchAll(/^\| \[`(\w+)`\]\(deploy\/(\w+)\)/gm)].map(([, name, path]) => {
    expect(name).toBe(path);
    return name!;
  });
  expect(named.sort()).toEqual([...folders, "Dockerfile"].sort());
});

describe.each(folders)("deploy/%s/README.md", (folder) => {
  const text = page(folder);

  test("names files that are there", () => {
    for (const [, path] of text.matchAll(/`(\.\.\/[\w.-]+(?:\/[\w.-]+)?)`/g)) {
      expect(existsSync(join(ROOT, "deploy", folder, path!)), path).toBe(true);
    }
  });

  test("has command lines of ours that the program takes", async () => {
    const code = [...text.matchAll(/^ {4}(.*)$|`([^`\n]+)`/gm)].map(([, block, inline]) => block ?? inline!);
    for (const line of code) {
      const [command] = /^blockhaul [a-z-]+\b[^#]*/.exec(line) ?? [];
      if (command === undefined) continue;
      await expect(parseLine(command), line).resolves.toBeUndefined();
    }
  });
});

test.each(folders.filter((folder) => folder !== "recovery"))(
  "deploy/%s/README.md says what it costs and how to undo it",
  (folder) => {
    expect(page(folder)).toMatch(/^## (?:Undo|Take them back)$/m);
    expect(page(folder)).toMatch(/\bcosts?\b/);
  },
);
