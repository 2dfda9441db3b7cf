import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { vectors } from "../../support/vectors.ts";

const page = readFileSync(join(import.meta.dirname, "../../../src/repository/FORMAT.md"), "utf8");

interface Vectors {
  readonly pass: { readonly hex: string; readonly sealed: string }[];
}

test("FORMAT.md: the pack shown is the vector", () => {
  const shown = /## Pack\n[^]*?```hex\n([^`]*)```/.exec(page)![1]!;
  expect(shown.replaceAll(/\s/g, "")).toBe((vectors("packs") as Vectors).pass[0]!.hex);
});

test("FORMAT.md: the config shown is the vector", () => {
  const shown = /## Config\n[^]*?```text\n([^`]*)```/.exec(page)![1]!;
  expect(shown).toBe(Buffer.from((vectors("config") as Vectors).pass[0]!.hex, "hex").toString("utf8"));
});

test("FORMAT.md: the key slot shown is the vector", () => {
  const shown = /## Keys\n[^]*?```text\n([^`]*)```/.exec(page)![1]!;
  expect(shown).toBe(Buffer.from((vectors("keys") as Vectors).pass[0]!.hex, "hex").toString("utf8"));
});

test("FORMAT.md: the seal shown is the vector", () => {
  const { sealed } = (vectors("sealing") as Vectors).pass[0]!;
  const shown = [sealed.slice(0, 24), sealed.slice(24, -32), sealed.slice(-32)].join(" ");
  expect(page).toContain(shown);
});

test("FORMAT.md: the contents lead to every section", () => {
  const sections = [...page.matchAll(/^## (.+)$/gm)].map((match) => match[1]!);
  const listed = [...page.matchAll(/\d+\. \[([^\]]+)\]\(#([^)]+)\)/g)];
  expect(listed.map((match) => match[1])).toEqual(sections);
  expect(listed.map((match) => match[2])).toEqual(
    sections.map((section) => section.toLowerCase().replaceAll(" ", "-")),
  );
});
