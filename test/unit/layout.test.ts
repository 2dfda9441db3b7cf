import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { expect, test } from "vitest";

const SRC = resolve(import.meta.dirname, "../../src");

/** Imports point down only; what stands here is the whole of the architecture's import table. */
const BASE = ["bytes", "flow", "disk", "errors.ts"];
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  "errors.ts": [],
  bytes: ["errors.ts"],
  flow: ["bytes", "errors.ts"],
  disk: ["bytes", "flow", "errors.ts"],
  aws: ["errors.ts"],
  nbd: BASE,
  store: ["aws", ...BASE],
  chunk: BASE,
  image: ["nbd", ...BASE],
  qemu: ["nbd", ...BASE],
  libvirt: ["qemu", "nbd", ...BASE],
  repository: ["chunk", "store", ...BASE],
  backup: ["repository", "chunk", "store", "nbd", "qemu", "libvirt", "image", ...BASE],
  restore: ["repository", "chunk", "store", "nbd", "image", ...BASE],
  upkeep: ["restore", "repository", "chunk", "store", ...BASE],
  serve: ["restore", "repository", "chunk", "store", "nbd", ...BASE],
  files: ["serve", "repository", "nbd", ...BASE],
  drill: ["files", "serve", "repository", "qemu", "nbd", ...BASE],
  "settings.ts": ["store", "nbd", ...BASE],
  session: ["settings.ts", "repository", "chunk", "store", ...BASE],
  jobs: [
    "session",
    "settings.ts",
    "backup",
    "upkeep",
    "repository",
    "store",
    "nbd",
    "libvirt",
    "qemu",
    "image",
    ...BASE,
  ],
  queue: ["aws", ...BASE],
  agent: ["watch", "queue", "jobs", "session", "upkeep", "repository", "backup", "store", ...BASE],
  watch: ["queue", "jobs", "session", "settings.ts", "repository", "store", ...BASE],
  lambda: [
    "agent",
    "watch",
    "queue",
    "jobs",
    "session",
    "settings.ts",
    "upkeep",
    "backup",
    "repository",
    "store",
    ...BASE,
  ],
  cli: [
    "agent",
    "queue",
    "jobs",
    "session",
    "settings.ts",
    "backup",
    "restore",
    "upkeep",
    "serve",
    "drill",
    "files",
    "repository",
    "chunk",
    "store",
    "nbd",
    "libvirt",
    "qemu",
    "image",
    ...BASE,
  ],
};

const files = readdirSync(SRC, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".ts"));

/** The specifiers of every static or dynamic import and re-export. */
function importsOf(file: string): string[] {
  const text = readFileSync(join(SRC, file), "utf8");
  return [...text.matchAll(/(?:from|import)\s*\(?\s*"([^"]+)"/g)].map((match) => match[1]!);
}

function folderOf(file: string): string {
  return file.split("/")[0]!;
}

test.each(files)("%s imports only what stands below it", (file) => {
  const from = folderOf(file);
  expect(MAY_IMPORT, `${from} is in the table`).toHaveProperty([from]);
  for (const specifier of importsOf(file)) {
    if (!specifier.startsWith(".")) continue;
    const to = folderOf(relative(SRC, resolve(SRC, dirname(file), specifier)));
    expect(to === from || MAY_IMPORT[from]!.includes(to), `${file} imports ${specifier}`).toBe(true);
  }
});

test("only src/store and src/queue know the AWS SDK", () => {
  const users = files.filter((file) => importsOf(file).some((name) => /^@(aws-sdk|smithy)\//.test(name)));
  expect(users.filter((file) => !["store", "queue"].includes(folderOf(file)))).toEqual([]);
});

/** What is loaded together with a file: no types, and nothing that is imported when it is needed. */
function loadedBy(file: string, loaded = new Set<string>()): Set<string> {
  if (loaded.has(file)) return loaded;
  loaded.add(file);
  const text = readFileSync(join(SRC, file), "utf8").replaceAll(/^import type [^;]+;$/gm, "");
  for (const [, specifier] of text.matchAll(/^(?:import|export)[^;(]*?from "([^"]+)";$/gm)) {
    if (specifier!.startsWith(".")) loadedBy(relative(SRC, resolve(SRC, dirname(file), specifier!)), loaded);
    else loaded.add(specifier!);
  }
  return loaded;
}

test("the command line starts without the AWS SDK, which half as much again to load would be", () => {
  const loaded = [...loadedBy("cli/main.ts")];
  expect(loaded).toContain("commander");
  expect(loaded).toContain("store/open.ts");
  expect(loaded.filter((name) => /^@(?:aws-sdk|smithy)\//.test(name))).toEqual([]);
});
