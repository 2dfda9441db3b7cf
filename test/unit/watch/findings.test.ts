import { expect, test } from "vitest";
import { MiB } from "../../../src/bytes/size.ts";
import { emptyStats } from "../../../src/backup/counts.ts";
import type { Manifest } from "../../../src/repository/manifest.ts";
import { changeOf, idOf, type Finding } from "../../../src/watch/findings.ts";
import { jumpsOf } from "../../../src/watch/jumps.ts";
import { findingsOfNotes } from "../../../src/watch/look.ts";
import { Notes, type Note } from "../../../src/watch/notes.ts";
import { temporaryFolder } from "../../support/folder.ts";

const finding = (place: string, subject: string, message = "x"): Finding => {
  return { kind: "late", place, subject, message };
};

test("only what changes is news, whatever words it comes in", () => {
  const at = new Date("2026-11-24T01:00:00Z");
  const later = new Date("2026-11-24T02:00:00Z");
  const first = changeOf({ findings: [finding("main", "web"), finding("main", "db")], unknown: [] }, {}, at);
  expect(first.come.map(idOf)).toEqual(["main/late/web", "main/late/db"]);
  const same = changeOf(
    { findings: [finding("main", "db"), finding("main", "web", "y")], unknown: [] },
    first.state,
    later,
  );
  expect(same).toEqual({ come: [], gone: [], state: first.state });
  const over = changeOf({ findings: [finding("main", "db")], unknown: [] }, first.state, later);
  expect(over).toEqual({ come: [], gone: ["main/late/web"], state: { "main/late/db": at.toISOString() } });
});

test("a place that cannot be looked at is not all right again", () => {
  const at = new Date("2026-11-24T01:00:00Z");
  const before = {
    "main/late/web": "2026-11-23T00:00:00.000Z",
    "main2/late/web": "2026-11-23T00:00:00.000Z",
  };
  const away: Finding = { kind: "unreachable", place: "main", subject: "", message: "away" };
  const change = changeOf({ findings: [away], unknown: ["main"] }, before, at);
  expect(change.come).toEqual([away]);
  expect(change.gone).toEqual(["main2/late/web"]);
  expect(change.state).toEqual({
    "main/late/web": before["main/late/web"],
    "main/unreachable/": at.toISOString(),
  });
});

/** Generations that stored so many MiB each, of which that part was packed. */
function generations(
  ...all: readonly (readonly [stored: number, ratio: number, kind?: Manifest["kind"]])[]
): Parameters<typeof jumpsOf>[0] {
  return all.map(([stored, ratio, kind = "incremental"]) => {
    const bytes = { bytesStored: stored * MiB, bytesPacked: stored * ratio * MiB };
    const stats = { ...emptyStats(), ...bytes, seconds: 1, metadataBytes: 0, peakRssBytes: 0, requests: {} };
    return { source: "web", kind, stats };
  });
}

test.each([
  ["as ever", generations([100, 0.5], [120, 0.4], [90, 0.6], [110, 0.5]), []],
  ["six times as much", generations([100, 0.5], [120, 0.4], [90, 0.6], [600, 0.5]), ["growth"]],
  ["incompressible all at once", generations([100, 0.5], [120, 0.4], [90, 0.6], [110, 0.99]), ["entropy"]],
  ["both", generations([100, 0.5], [120, 0.4], [90, 0.6], [700, 1]), ["growth", "entropy"]],
  ["always incompressible", generations([100, 0.98], [120, 0.99], [90, 1], [110, 0.99]), []],
  ["too little to tell", generations([1, 0.5], [1, 0.5], [1, 0.5], [20, 1]), []],
  ["too few before", generations([100, 0.5], [100, 0.5], [900, 1]), []],
  ["a full is no jump", generations([100, 0.5], [120, 0.4], [90, 0.6], [900, 1, "full"]), []],
  [
    "nothing is compared with a full",
    generations([9000, 0.9, "full"], [100, 0.5], [120, 0.4], [90, 0.6], [600, 0.5]),
    ["growth"],
  ],
  ["after nothing at all", generations([0, 0], [0, 0], [0, 0], [50, 1]), ["growth"]],
])("growth and entropy: %s", (_, manifests, kinds) => {
  expect(jumpsOf(manifests).map(({ kind }) => kind)).toEqual(kinds);
});

test("notes: failures, and what ended without a word", () => {
  const now = new Date("2026-11-24T12:00:00Z");
  const note = (more: Partial<Note>): Note => {
    return {
      format: 1,
      by: "maintain",
      job: "nightly",
      source: "",
      state: "done",
      at: "2026-11-24T11:00:00Z",
      ...more,
    };
  };
  const until = (time: string): Partial<Note> => ({ state: "running", until: `2026-11-24T${time}Z` });
  const notes = [
    note({}),
    note({ by: "pull", source: "web", state: "failed", code: "E_NBD_CONNECT", message: "nobody there" }),
    note({ by: "maintain", ...until("11:15:00") }),
    note({ by: "pull", source: "db", ...until("12:15:00") }),
    note({ job: "of-long-ago", state: "failed" }),
    note({ by: "dispatch", job: "misspelt", state: "failed", code: "E_NO_JOB", message: "no" }),
    note({ by: "dispatch", job: "", state: "failed", code: "E_EVENT", message: "no" }),
    note({ by: "pull", job: "", state: "failed", at: "2026-11-22T11:00:00Z" }),
    note({ by: "dispatch", job: "misspelt-once", state: "failed", at: "2026-11-22T11:00:00Z" }),
    note({ by: "pull", source: "removed", state: "failed", at: "2026-11-22T11:00:00Z" }),
    note({ by: "agent", host: "h7", source: "unknown", state: "failed", code: "E_X", message: "no" }),
    note({ by: "agent", host: "h7", job: "", state: "failed", code: "E_NO_QUEUE", message: "gone" }),
    note({ by: "agent", host: "h8", job: "", state: "done" }),
  ];
  const jobs = { nightly: { sources: ["web", "db"] } };
  const found = findingsOfNotes(notes, jobs, [], now);
  expect(found.map(idOf)).toEqual([
    "functions/function/pull/nightly/web",
    "functions/function/maintain/nightly",
    "functions/function/dispatch/misspelt",
    "functions/function/dispatch",
    "agents/agent/nightly/unknown",
    "agents/agent/h7",
  ]);
  expect(found[1]!.message).toContain("ran out of time or memory");
  expect(found[4]!.message).toMatch(
    /^The agent on h7 of job nightly, source unknown failed at .*: no \(E_X\)$/,
  );
});

test("what a note says of a source is over once that has been backed up, by whomever", () => {
  const now = new Date("2026-11-24T12:00:00Z");
  const note: Note = {
    format: 1,
    by: "agent",
    host: "h7",
    job: "nightly",
    source: "web",
    state: "failed",
    at: "2026-11-24T11:00:00Z",
  };
  const jobs = { nightly: { sources: ["web"] }, weekly: { sources: ["web"] } };
  const found = (job: string, ageMs: number | undefined): number =>
    findingsOfNotes([note], jobs, [{ job, source: "web", ageMs, newest: undefined }], now).length;
  expect(found("nightly", 30 * 60_000)).toBe(0);
  expect(found("nightly", 90 * 60_000)).toBe(1);
  expect(found("nightly", undefined)).toBe(1);
  expect(found("weekly", 30 * 60_000)).toBe(1); // perhaps in another repository
});

test("notes are kept, one for each subject, and what is damaged counts as nothing", async () => {
  const folder = await temporaryFolder();
  const notes = await Notes.open(folder);
  const { signal } = new AbortController();
  const subject = { by: "pull", job: "nightly", source: "web", at: "2026-11-24T11:00:00Z" };
  await notes.write({ ...subject, state: "failed", code: "E_X", message: "é".repeat(3000) }, signal);
  await notes.write({ ...subject, state: "done" }, signal);
  await notes.write({ ...subject, source: "db", state: "done" }, signal);
  for (const host of ["h7", "h8"]) {
    await notes.write({ ...subject, by: "agent", host, job: "", source: "", state: "done" }, signal);
    await notes.write({ ...subject, by: "agent", host, source: "any", state: "done" }, signal);
  }
  expect((await notes.read(signal)).map(({ source, state }) => `${source} ${state}`).sort()).toEqual([
    " done",
    " done",
    "any done",
    "db done",
    "web done",
  ]);
  expect(await notes.state(signal)).toEqual({});
  await notes.remember({ "main/late/web": "2026-11-24T11:00:00.000Z" }, signal);
  expect(await notes.state(signal)).toEqual({ "main/late/web": "2026-11-24T11:00:00.000Z" });
  notes.close();
});
