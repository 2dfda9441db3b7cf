import { expect, test, vi } from "vitest";
import { AppError } from "../../../src/errors.ts";
import { latestGeneration } from "../../../src/repository/generations.ts";
import { livePins, RUN_GRACE_MS } from "../../../src/repository/pins.ts";
import { listRuns } from "../../../src/repository/runs.ts";
import { withStandingPin } from "../../../src/serve/standing-pin.ts";
import { TroubleLog } from "../../../src/serve/trouble-log.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { diskOf, newBackups } from "../backup/chunks.ts";

const { signal } = new AbortController();

test("a pin is renewed while the work goes on, is never missing, and ends with it", async () => {
  const backups = await newBackups();
  await backups.backup([diskOf([1])]);
  const manifest = (await latestGeneration(backups.repository, "web", signal))!;
  let begun = 0;
  let failing = true;
  const store = new HookedStore(backups.store, {
    before: (operation, key) => {
      if (operation !== "put" || !key.endsWith(".begin.json") || ++begun !== 2 || !failing) return;
      failing = false;
      throw new AppError("unavailable", "E_STORE", "The store is away");
    },
  });
  const { repository } = backups.tools(store);
  const warnings: string[] = [];
  const options = {
    purpose: "serve" as const,
    host: "test",
    writer: "test",
    unpinned: () => undefined,
    warn: (message: string) => void warnings.push(message),
    renewMs: 1,
  };
  const pins = async (): Promise<number> => {
    const found = await livePins(repository, "web", { graceMs: RUN_GRACE_MS, isGone: () => false }, signal);
    return found.length;
  };
  await withStandingPin(repository, manifest, options, signal, async () => {
    while (begun < 5) expect(await pins()).toBeGreaterThanOrEqual(1);
  });
  expect(await pins()).toBe(0);
  expect(warnings).toEqual(["The generation's pin could not be renewed, will try again: The store is away"]);
  const runs = (await listRuns(repository, "web", 100, signal)).filter(
    ({ begin }) => begin.purpose === "serve",
  );
  expect(runs.length).toBeGreaterThanOrEqual(3); // the last one that was begun may have been cut short
  expect(runs.every(({ begin }) => begin.pinned === manifest.generation)).toBe(true);
});

test("the same trouble is told once a minute, whichever bytes were asked for", () => {
  let now = 0;
  const tell = vi.fn();
  const log = new TroubleLog(tell, () => now);
  const damage = (slot: number, offset: number): AppError =>
    new AppError("corrupt", "E_CRC", `Bytes at ${offset}: slot ${slot}`, { pack: "p", slot });
  for (let offset = 0; offset < 100; offset++) log.note(damage(3, offset));
  log.note(damage(4, 0));
  expect(tell.mock.calls.flat()).toEqual(["Bytes at 0: slot 3", "Bytes at 0: slot 4"]);
  now = 60_000;
  log.note(damage(3, 7));
  expect(tell).toHaveBeenCalledTimes(3);
});
