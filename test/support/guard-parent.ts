import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import type { Guard as GuardType } from "../../src/qemu/guard/guard.ts";
import type { QmpClient as QmpClientType } from "../../src/qemu/qmp/client.ts";

/**
 * A program that has a guard, for tests that end it: argv is the folder of the code (`src` or `dist`), `start`'s
 * options as JSON, and what it does, in order; each is told by its name on the IPC channel when it is done. Then it
 * waits for its end.
 */
const [, , folder, options, ...steps] = process.argv;
const extension = folder === "dist" ? "js" : "ts";
const load = async (path: string): Promise<Record<string, unknown>> =>
  (await import(
    pathToFileURL(resolve(import.meta.dirname, `../../${folder}/qemu/${path}.${extension}`)).href
  )) as never;
const { Guard } = (await load("guard/guard")) as { Guard: typeof GuardType };
const { QmpClient } = (await load("qmp/client")) as { QmpClient: typeof QmpClientType };

const never = new AbortController().signal;
const start = JSON.parse(options!) as Parameters<typeof GuardType.start>[0];
const guard = await Guard.start(start, never);
for (const step of ["start", ...steps]) {
  if (step === "freeze") await guard.freeze(never);
  if (step === "thaw") await guard.thaw();
  if (step === "finish") await guard.finish();
  if (step === "hold the monitor") await QmpClient.connect(start.qmp, never);
  process.send!(step);
}
process.on("message", () => {
  for (;;); // "block": its event loop stands still
});
