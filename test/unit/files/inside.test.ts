import { mkdir, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { insideOf } from "../../../src/files/inside.ts";
import { temporaryFolder } from "../../support/folder.ts";

/** A volume on which links lead everywhere. */
async function volume(): Promise<string> {
  const root = await temporaryFolder();
  await mkdir(join(root, "etc/deep"), { recursive: true });
  await writeFile(join(root, "etc/passwd"), "guest");
  const links = {
    absolute: "/etc/passwd",
    up: "../../../../etc/passwd",
    "etc/deep/up": "../../../../../../etc/passwd",
    folder: "/etc",
    chain: "folder/deep/up",
    round: "round",
    there: "back",
    back: "/there",
    nowhere: "/not/there",
  };
  for (const [name, target] of Object.entries(links)) await symlink(target, join(root, name));
  return root;
}

test.each([
  ["/etc/passwd", "etc/passwd"],
  ["etc//./deep/../passwd", "etc/passwd"],
  ["../../../etc/passwd", "etc/passwd"],
  ["absolute", "etc/passwd"],
  ["up", "etc/passwd"],
  ["/etc/deep/up", "etc/passwd"],
  ["folder/passwd", "etc/passwd"],
  ["chain", "etc/passwd"],
  ["folder/../etc", "etc"], // as the text says, and as it would be there too
  ["/", ""],
])("%s leads to the volume's own file", async (path, wanted) => {
  const root = await volume();
  expect(await insideOf(root, path, true)).toBe(join(root, wanted));
});

test("a link at the end may be what is meant", async () => {
  const root = await volume();
  expect(await insideOf(root, "folder/deep/up", false)).toBe(join(root, "etc/deep/up"));
});

test.each([
  ["etc/shadow", "E_NO_FILE"],
  ["etc/passwd/x", "E_NO_FILE"],
  ["nowhere", "E_NO_FILE"],
  ["round", "E_LINKS"],
  ["there", "E_LINKS"],
])("%s leads nowhere", async (path, code) => {
  await expect(insideOf(await volume(), path, true)).rejects.toMatchObject({ code });
});
