import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { AppError } from "../../src/errors.ts";
import { Rota } from "../../src/jobs/rota.ts";
import { jobsOf, withJob } from "../../src/jobs/job.ts";
import type { JobOutcome } from "../../src/jobs/run-job.ts";
import { qemuNbd } from "../support/exported-images.ts";
import { makeImage, patchImage } from "../support/images.ts";
import { JobPlace } from "../support/jobs.ts";

const HOOK =
  'echo "$BLOCKHAUL_SOURCE $BLOCKHAUL_STEP $BLOCKHAUL_RESULT $BLOCKHAUL_ERROR_CODE ${SECRET:-}" >> "$LOG"';

const quoted = (hook: string): string => `'${hook}'`;

/** An image of 2 MiB that qemu-nbd exports. */
async function exported(place: JobPlace): Promise<{ readonly uri: string; readonly image: string }> {
  const image = place.path("web.raw");
  await makeImage(image, { size: 2 * MiB, seed: 1, parts: [{ kind: "text", length: MiB }] });
  const server = await qemuNbd("--format=raw", image);
  return { uri: server.uri, image };
}

/** "web: done", "gone: backup E_…". */
function results({ sources }: JobOutcome): string[] {
  return sources.map(({ source, failure }) => {
    if (failure === undefined) return `${source}: done`;
    return `${source}: ${failure.step} ${failure.error instanceof AppError ? failure.error.code : String(failure.error)}`;
  });
}

test("each source between its hooks; what fails does not stop the rest", async () => {
  const place = await JobPlace.make();
  const { uri } = await exported(place);
  const text = `
repositories: { main: { url: "\${REPOSITORY}" } }
sources:
  gone: { uri: "nbd+unix:///x?socket=${place.path("no.sock")}" }
  web: { uri: "${uri}", tags: { a: b } }
jobs:
  nightly:
    repository: main
    sources: [gone, web]
    hooks:
      before: ${quoted(`echo before; ${HOOK}`)}
      after: ${quoted(HOOK)}
      on_failure: ${quoted(HOOK)}
`;
  const told: string[] = [];
  const outcome = await place.run(text, { listener: { source: ({ source }) => void told.push(source) } });
  expect(results(outcome)).toEqual(["gone: backup E_NBD_CONNECT", "web: done"]);
  expect(outcome.sources[1]!.report!.manifest).toMatchObject({
    source: "web",
    kind: "full",
    tags: { a: "b" },
  });
  expect(told).toEqual(["gone", "web"]);
  expect((await place.log()).map((line) => line.trim())).toEqual([
    "gone backup",
    "gone backup failed E_NBD_CONNECT",
    "web backup",
    "web after done",
  ]);
});

test("a hook that fails before prevents the backup; one that fails after leaves it", async () => {
  const place = await JobPlace.make();
  const { uri } = await exported(place);
  const text = (hooks: string): string => `
repositories: { main: { url: "\${REPOSITORY}" } }
sources: { web: { uri: "${uri}" } }
jobs: { nightly: { repository: main, sources: [web], hooks: { ${hooks} } } }
`;
  const before = await place.run(text("before: exit 3"));
  expect(results(before)).toEqual(["web: before E_HOOK"]);
  expect(before.sources[0]!.report).toBeUndefined();
  expect(before.sources[0]!.failure!.error).toHaveProperty(
    "message",
    "The hook before of job nightly of web ended with 3",
  );
  const after = await place.run(text("after: sleep 100, timeout: 1s, on_failure: exit 4"));
  expect(results(after)).toEqual(["web: after E_HOOK"]);
  expect(after.sources[0]!.report).toBeDefined();
  expect(place.words).toEqual(["warn: The hook on_failure of job nightly of web ended with 4"]);
});

test("retention by the job's rules, and upkeep when it is due", async () => {
  const place = await JobPlace.make();
  const { uri, image } = await exported(place);
  const text = `
repositories: { main: { url: "\${REPOSITORY}" } }
sources: { web: { uri: "${uri}" } }
jobs:
  nightly:
    repository: main
    sources: [web]
    retention: { keep_last: 2 }
    prune: { every: 1w }
    verify: { percent: 100 }
`;
  const outcomes: JobOutcome[] = [];
  for (let run = 1; run <= 3; run++) {
    outcomes.push(await place.run(text));
    await patchImage(image, [{ offset: 0, length: 4096, seed: 100 + run }]);
  }
  expect(outcomes.map(results)).toEqual([["web: done"], ["web: done"], ["web: done"]]);
  const ids = outcomes.map(({ sources }) => sources[0]!.report!.manifest.generation);
  expect(outcomes.map(({ sources }) => sources[0]!.retention!.remove.map((one) => one.generation))).toEqual([
    [],
    [],
    [ids[0]],
  ]);
  expect(outcomes.map(({ upkeep, notDue }) => [upkeep.map(({ step }) => step), notDue])).toEqual([
    [["prune", "verify"], []],
    [["verify"], ["prune"]],
    [["verify"], ["prune"]],
  ]);
  expect(outcomes[2]!.upkeep[0]!.report).toMatchObject({ generations: 2, problems: [] });
});

test("upkeep is due a little before its time, after a clock that went back, and when nobody knows", async () => {
  const place = await JobPlace.make();
  const file = place.read(`
repositories: { main: { url: "\${REPOSITORY}" } }
sources: { web: { uri: "nbd://h/x" } }
jobs: { nightly: { repository: main, sources: [web], prune: { every: 10h } } }
`);
  const hours = (count: number): number => count * 3_600_000;
  await withJob(jobsOf(file)[0]!, place.runner(), new AbortController().signal, async (job) => {
    const rota = new Rota(job);
    const due = (now: number): Promise<boolean> => rota.isDue("prune", hours(10), hours(now));
    expect(await due(100)).toBe(true);
    await rota.done("prune", hours(100));
    expect([await due(100), await due(108.9), await due(109.1), await due(99)]).toEqual([
      false,
      false,
      true,
      true,
    ]);
    expect(await rota.isDue("verify", hours(10), hours(100))).toBe(true);
    expect(await rota.isDue("prune", undefined, hours(100))).toBe(true);
    const path = join(place.path("cache"), `${job.session.repository.config.repository}.upkeep.json`);
    await writeFile(path, "{ broken");
    expect(await due(100)).toBe(true);
  });
});

test("a verify that finds problems has failed, is told to the hook, and is due again", async () => {
  const place = await JobPlace.make();
  const { uri } = await exported(place);
  const text = `
repositories: { main: { url: "\${REPOSITORY}" } }
sources: { web: { uri: "${uri}" } }
jobs:
  nightly:
    repository: main
    sources: [web]
    verify: { every: 1w }
    hooks: { on_failure: ${quoted(HOOK)}, after: ${quoted(`rm -r "${place.repository}/packs"`)} }
`;
  const broken = await place.run(text);
  expect(broken.upkeep[0]).toMatchObject({ step: "verify", error: { code: "E_VERIFY", kind: "corrupt" } });
  expect(broken.upkeep[0]!.report).toHaveProperty("problems");
  expect((await place.log()).map((line) => line.trim())).toEqual(["verify failed E_VERIFY"]);
  expect((await place.run(text.replace(/after: .*$/m, "after: 'true' }"))).notDue).toEqual([]);
});

test("a job that is stopped undoes what it began, and begins nothing more", async () => {
  const place = await JobPlace.make();
  const { uri } = await exported(place);
  const text = `
repositories: { main: { url: "\${REPOSITORY}" } }
sources: { web: { uri: "${uri}" }, db: { uri: "${uri}" } }
jobs:
  nightly:
    repository: main
    sources: [web, db]
    prune: {}
    hooks: { on_failure: ${quoted(HOOK)} }
`;
  const stop = new AbortController();
  const reason = new AppError("cancelled", "E_INTERRUPTED", "Interrupted");
  const outcome = await place.run(text, {
    signal: stop.signal,
    listener: { backup: () => stop.abort(reason) },
  });
  expect(results(outcome)).toEqual(["web: backup E_INTERRUPTED"]);
  expect(outcome).toMatchObject({ notRun: ["db"], upkeep: [], error: undefined });
  expect((await place.log()).map((line) => line.trim())).toEqual(["web backup failed E_INTERRUPTED"]);
  // the lease was given back: the next run is not locked out
  expect(results(await place.run(text))).toEqual(["web: done", "db: done"]);
});

test("a repository that cannot be opened fails the job, not the caller; no hook sees a password", async () => {
  const place = await JobPlace.make();
  const text = `
repositories: { main: { url: "\${REPOSITORY}", password_env: SECRET } }
sources: { web: { uri: "nbd://h/x" } }
jobs: { nightly: { repository: main, sources: [web], hooks: { on_failure: ${quoted(HOOK)} } } }
`;
  const missing = await place.run(text);
  expect(missing).toMatchObject({ sources: [], notRun: ["web"], error: { code: "E_PASSWORD_ENV" } });
  const plain = await place.run(text, { environment: { SECRET: "hunter2" } });
  expect(plain).toMatchObject({ notRun: ["web"], error: { kind: "credentials" } });
  expect((await place.log()).map((line) => line.trim())).toEqual([
    "open failed E_PASSWORD_ENV",
    expect.not.stringContaining("hunter2"),
  ]);
});
