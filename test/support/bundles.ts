import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const BUILD = resolve(import.meta.dirname, "../../deploy/lambda/build.js");

let folder: string | undefined;

/** For `beforeAll`: builds the functions as they are deployed, of the sources as they are now; removed with the test file. */
export async function buildFunctions(): Promise<() => Promise<void>> {
  const place = await mkdtemp(join(tmpdir(), "blockhaul-functions-"));
  folder = join(place, "bundles");
  const build = spawn(process.execPath, [BUILD, folder], { stdio: "inherit" });
  const [code] = (await once(build, "exit")) as [number | null];
  if (code !== 0) throw new Error(`The functions cannot be built: ${code ?? "ended by force"}`);
  return () => rm(place, { recursive: true, force: true });
}

/** Where they are, as `/var/task` in Lambda. */
export function builtFunctions(): string {
  if (folder === undefined) throw new Error("The functions are not built: beforeAll(buildFunctions)");
  return folder;
}
