import { expect, test } from "vitest";
import { runBeginKey, runEndKey, uuidv7 } from "../../../src/repository/names.ts";
import { type RunBegin, type RunEnd, beginRun, endRun, listRuns } from "../../../src/repository/runs.ts";
import { SEALINGS, TEST_REPOSITORY, memoryRepository } from "../../support/memory-repository.ts";

const never = new AbortController().signal;
const common = { format: 1, repository: TEST_REPOSITORY, source: "web" } as const;

function begin(time: number, pinned: string | null): RunBegin {
  const startedAt = new Date(time).toISOString();
  return {
    ...common,
    run: uuidv7(time),
    purpose: "backup",
    startedAt,
    pinned,
    host: "alpha",
    writer: "blockhaul 0",
  };
}

function end(run: string, fields: Partial<RunEnd> = {}): RunEnd {
  const endedAt = "2026-11-22T03:00:00.000Z";
  return {
    ...common,
    run,
    endedAt,
    outcome: "done",
    generation: null,
    error: null,
    seconds: 1,
    requests: {},
    ...fields,
  };
}

test.each(SEALINGS)(
  "R6, R7: runs say since when, and which generation they stand on ($name)",
  async ({ encrypted }) => {
    const repository = memoryRepository({ encrypted });
    const parent = uuidv7(1);
    const [first, second, third] = [begin(1000, null), begin(2000, parent), begin(3000, parent)] as const;
    for (const run of [third, first, second]) await beginRun(repository, run, never);
    const failed = end(second.run, { outcome: "failed", error: { code: "E_STORE", message: "No answer" } });
    await endRun(repository, end(first.run, { generation: parent, requests: { PutObject: 7 } }), never);
    await endRun(repository, failed, never);
    const runs = await listRuns(repository, "web", 10, never);
    expect(runs.map((run) => run.begin)).toEqual([first, second, third]);
    expect(runs[0]!.end).toMatchObject({ outcome: "done", requests: { PutObject: 7 } });
    expect(runs[1]!.end).toEqual(failed);
    expect(runs[2]!.end).toBeUndefined();
    expect((await listRuns(repository, "web", 1, never)).map((run) => run.begin)).toEqual([third]);
    expect(await listRuns(repository, "db", 10, never)).toEqual([]);
  },
);

test("R6: a begin record without a generation to pin must say so", async () => {
  const repository = memoryRepository();
  const { pinned, ...without } = begin(1000, null);
  expect(pinned).toBeNull();
  const beginning = beginRun(repository, without as RunBegin, never);
  await expect(beginning).rejects.toMatchObject({ code: "E_RECORD" });
  expect(repository.store.objects.size).toBe(0);
});

test.each(SEALINGS)("R15: a record that was put elsewhere is refused ($name)", async ({ encrypted }) => {
  const repository = memoryRepository({ encrypted });
  const run = begin(1000, null);
  await beginRun(repository, run, never);
  const moved = uuidv7(2000);
  await repository.store.put(
    runBeginKey("web", moved),
    repository.store.bytes(runBeginKey("web", run.run)),
    never,
  );
  const code = encrypted ? "E_SEAL" : "E_MISPLACED";
  await expect(listRuns(repository, "web", 1, never)).rejects.toMatchObject({ kind: "corrupt", code });
});

test("records are written once", async () => {
  const repository = memoryRepository();
  const run = begin(1000, null);
  await beginRun(repository, run, never);
  await expect(beginRun(repository, { ...run, host: "beta" }, never)).rejects.toMatchObject({
    code: "E_EXISTS",
  });
  await endRun(repository, end(run.run), never);
  expect([...repository.store.objects.keys()]).toEqual([
    runBeginKey("web", run.run),
    runEndKey("web", run.run),
  ]);
});
