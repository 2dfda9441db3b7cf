import { describe, expect, test } from "vitest";
import { Calendar, PERIODS, type Period } from "../../../src/upkeep/calendar.ts";
import {
  checkPolicy,
  decideRetention,
  type RetentionPolicy,
  type RetentionSubject,
} from "../../../src/upkeep/retention.ts";
import { seeded } from "../../support/seeded.ts";

type Rules = Partial<Record<Period, number>> & Partial<Pick<RetentionPolicy, "last" | "within" | "tags">>;

function policyOf({ last, within, tags = [], ...periods }: Rules): RetentionPolicy {
  const none = {
    hourly: undefined,
    daily: undefined,
    weekly: undefined,
    monthly: undefined,
    yearly: undefined,
  };
  return { last, within, tags, periods: { ...none, ...periods } };
}

/** Generations called 1, 2, 3 …, in the order given. */
function taken(
  ...times: readonly (string | readonly [string, Record<string, string>])[]
): RetentionSubject[] {
  return times.map((time, index) => {
    const [at, tags] = typeof time === "string" ? [time, {}] : time;
    const frozenAt = new Date(at).toISOString();
    return { generation: String(index + 1), sequence: index + 1, committedAt: frozenAt, frozenAt, tags };
  });
}

/** Reasons by generation, of those that are kept. */
function kept(
  generations: readonly RetentionSubject[],
  rules: Rules,
  options: { zone?: string; guarded?: ReadonlyMap<string, readonly string[]>; now?: string } = {},
): Record<string, readonly string[]> {
  const { zone = "UTC", guarded = new Map<string, readonly string[]>(), now = "2999-01-01" } = options;
  const calendar = new Calendar(zone);
  const decisions = decideRetention(generations, policyOf(rules), calendar, guarded, new Date(now));
  expect(decisions).toHaveLength(generations.length);
  const keeping = decisions.filter(({ reasons }) => reasons.length > 0);
  return Object.fromEntries(keeping.map(({ manifest, reasons }) => [manifest.generation, reasons]));
}

const NEWEST = "newest of its source";

describe("each rule", () => {
  const days = taken(...[20, 21, 22, 23, 24].map((day) => `2026-11-${day}T03:00Z`));

  test("last", () => {
    expect(kept(days, { last: 3 })).toEqual({ 3: ["last 3"], 4: ["last 3"], 5: ["last 3", NEWEST] });
    expect(Object.keys(kept(days, { last: 99 }))).toHaveLength(5);
  });

  test("hourly: the newest of an hour, hours without any do not count", () => {
    const hours = taken(
      "2026-11-22T01:10Z",
      "2026-11-22T03:00Z",
      "2026-11-22T03:59:59.999Z",
      "2026-11-22T07:00Z",
    );
    expect(kept(hours, { hourly: 3 })).toEqual({
      1: ["hourly 2026-11-22T01Z"],
      3: ["hourly 2026-11-22T03Z"],
      4: ["hourly 2026-11-22T07Z", NEWEST],
    });
    expect(Object.keys(kept(hours, { hourly: 2 }))).toEqual(["3", "4"]);
  });

  test("daily, weekly, monthly, yearly", () => {
    expect(kept(days, { daily: 2 })).toEqual({
      4: ["daily 2026-11-23"],
      5: ["daily 2026-11-24", NEWEST],
    });
    // 22 November 2026 is a Sunday
    expect(kept(days, { weekly: 5 })).toEqual({ 3: ["weekly 2026-W47"], 5: ["weekly 2026-W48", NEWEST] });
    const years = taken("2024-02-29T00:00Z", "2025-12-31T23:59Z", "2026-01-01T00:00Z", "2026-01-31T00:00Z");
    expect(kept(years, { monthly: 2 })).toEqual({ 2: ["monthly 2025-12"], 4: ["monthly 2026-01", NEWEST] });
    expect(kept(years, { yearly: 3 })).toEqual({
      1: ["yearly 2024"],
      2: ["yearly 2025"],
      4: ["yearly 2026", NEWEST],
    });
  });

  test("a year of 53 weeks: its last days are of one week with the first of the next year", () => {
    const turn = taken("2026-12-27T03:00Z", "2026-12-31T03:00Z", "2027-01-03T03:00Z", "2027-01-04T03:00Z");
    expect(kept(turn, { weekly: 3 })).toEqual({
      1: ["weekly 2026-W52"],
      3: ["weekly 2026-W53"],
      4: ["weekly 2027-W01", NEWEST],
    });
  });

  test("within: counted from the newest, however long ago that is; the edge is in", () => {
    expect(kept(days, { within: "2d" })).toEqual({
      3: ["within 2d"],
      4: ["within 2d"],
      5: ["within 2d", NEWEST],
    });
    const leap = taken("2028-02-28T03:00Z", "2028-02-29T03:00Z", "2028-03-31T03:00Z");
    expect(Object.keys(kept(leap, { within: "1m" }))).toEqual(["2", "3"]);
  });

  test("within: a newest that is dated ahead does not make the others old", () => {
    const jumped = taken("2026-11-21T03:00Z", "2026-11-22T03:00Z", "2036-01-01T03:00Z");
    const now = "2026-11-22T04:00Z";
    expect(Object.keys(kept(jumped, { within: "1d" }, { now }))).toEqual(["2", "3"]);
  });

  test("tags: each is a rule of its own; key and value must match", () => {
    const tagged = taken(
      ["2026-11-20T03:00Z", { ticket: "1", why: "x" }],
      ["2026-11-21T03:00Z", { ticket: "2" }],
      ["2026-11-22T03:00Z", { ticket: "3" }],
      ["2026-11-23T03:00Z", { other: "1" }],
      "2026-11-24T03:00Z",
    );
    const tags = [
      ["ticket", "1"],
      ["ticket", "2"],
      ["why", "x"],
      ["constructor", "1"],
    ] as const;
    expect(kept(tagged, { tags })).toEqual({
      1: ["tag ticket=1", "tag why=x"],
      2: ["tag ticket=2"],
      5: [NEWEST],
    });
  });

  test("what is held or in use is kept, and counts for the other rules like any other", () => {
    const guarded = new Map([
      ["1", ["held"]],
      ["4", ["in use by a restore on alpha", "held"]],
      ["9", ["held"]],
    ]);
    expect(kept(days, { last: 2 }, { guarded })).toEqual({
      1: ["held"],
      4: ["last 2", "in use by a restore on alpha", "held"],
      5: ["last 2", NEWEST],
    });
  });

  test("all reasons are given, in the order of the rules", () => {
    const rules: Rules = { last: 1, hourly: 1, daily: 1, weekly: 1, monthly: 1, yearly: 1, within: "1h" };
    expect(kept(days, rules)).toEqual({
      5: [
        ...["last 1", "hourly 2026-11-24T03Z", "daily 2026-11-24", "weekly 2026-W48", "monthly 2026-11"],
        ...["yearly 2026", "within 1h", NEWEST],
      ],
    });
  });

  test("nothing to decide on", () => {
    expect(kept([], { last: 3, within: "1d", daily: 2 })).toEqual({});
  });
});

describe("corners", () => {
  test("the hour that clocks show twice is two hours, and one day of 25", () => {
    const times = ["2026-10-25T00:10Z", "2026-10-25T00:50Z", "2026-10-25T01:10Z", "2026-10-25T01:50Z"];
    const zone = "Europe/Berlin";
    expect(kept(taken(...times), { hourly: 9 }, { zone })).toEqual({
      2: ["hourly 2026-10-25T02+02:00"],
      4: ["hourly 2026-10-25T02+01:00", NEWEST],
    });
    const long = taken("2026-10-24T21:59Z", "2026-10-24T22:00Z", "2026-10-25T22:59Z", "2026-10-25T23:00Z");
    expect(Object.keys(kept(long, { daily: 9 }, { zone }))).toEqual(["1", "3", "4"]);
  });

  test("a day is the zone's: the same times, other days", () => {
    const times = taken("2026-11-21T23:30Z", "2026-11-22T22:30Z", "2026-11-22T23:30Z");
    expect(Object.keys(kept(times, { daily: 9 }))).toEqual(["1", "3"]);
    expect(Object.keys(kept(times, { daily: 9 }, { zone: "Europe/Berlin" }))).toEqual(["2", "3"]);
  });

  test("time that went back: order is by sequence, and no period is counted twice", () => {
    const back = taken("2026-11-22T03:00Z", "2026-11-23T03:00Z", "2026-11-22T05:00Z", "2026-11-23T05:00Z");
    expect(kept(back, { daily: 2 })).toEqual({ 3: ["daily 2026-11-22"], 4: ["daily 2026-11-23", NEWEST] });
    const older = taken("2026-11-23T03:00Z", "2026-11-22T03:00Z");
    expect(kept(older, { last: 1 })).toEqual({ 2: ["last 1", NEWEST] });
    expect(kept(older, { within: "1h" })).toEqual({ 1: ["within 1h"], 2: ["within 1h", NEWEST] });
  });

  test("the instant counts, not when the run was done", () => {
    const [slow, next] = taken("2026-11-21T23:50Z", "2026-11-22T23:50Z");
    const late = { ...slow!, committedAt: "2026-11-22T04:00:00.000Z" };
    expect(kept([late, next!], { daily: 5 })).toEqual({
      1: ["daily 2026-11-21"],
      2: ["daily 2026-11-22", NEWEST],
    });
  });

  test("a policy without a rule is refused; a tag alone is one", () => {
    expect(() => checkPolicy(policyOf({}))).toThrow(
      expect.objectContaining({ kind: "usage", code: "E_NO_RULE" }),
    );
    for (const rules of [{ last: 1 }, { yearly: 1 }, { within: "1d" }, { tags: [["a", "b"]] }] as Rules[]) {
      checkPolicy(policyOf(rules));
    }
  });
});

/** What clocks show, as "2026-11-22 03:00:00": by the locale that writes times so. */
function clock(zone: string): (time: number) => string {
  const format = new Intl.DateTimeFormat("sv-SE", {
    timeZone: zone,
    dateStyle: "short",
    timeStyle: "medium",
  });
  return (time) => format.format(time);
}

/** Which period a time is in, as something that differs where the periods do; slow and obvious. */
function periodOf(period: Period, time: number, shown: (time: number) => string): string {
  const text = shown(time);
  if (period === "yearly") return text.slice(0, 4);
  if (period === "monthly") return text.slice(0, 7);
  if (period === "daily") return text.slice(0, 10);
  if (period === "weekly") {
    const day = new Date(`${text.slice(0, 10)}T00:00:00Z`);
    while (day.getUTCDay() !== 1) day.setUTCDate(day.getUTCDate() - 1);
    return day.toISOString(); // the Monday
  }
  // back to where the hour began, minute by minute: it ends where another hour is shown, or a later minute
  let start = Math.floor(time / 60_000) * 60_000;
  for (;;) {
    const [now, before] = [shown(start), shown(start - 60_000)];
    if (before.slice(0, 13) !== now.slice(0, 13) || before > now) return String(start);
    start -= 60_000;
  }
}

/** Is it kept, and why? Each generation and each rule looked at alone. */
function model(
  all: readonly RetentionSubject[],
  one: RetentionSubject,
  rules: Rules,
  periodOfTime: (period: Period, time: string) => string,
): string[] {
  const newer = all.filter(({ sequence }) => sequence > one.sequence);
  const why: string[] = [];
  if (newer.length < (rules.last ?? 0)) why.push("last");
  for (const period of PERIODS) {
    const its = periodOfTime(period, one.frozenAt);
    const others = new Set(newer.map(({ frozenAt }) => periodOfTime(period, frozenAt)));
    if (!others.has(its) && others.size < (rules[period] ?? 0)) why.push(period);
  }
  const newest = Date.parse(all.find(({ sequence }) => sequence === all.length)!.frozenAt);
  const hours = Number(/^(\d+)h$/.exec(rules.within ?? "")?.[1] ?? NaN);
  if (newest - Date.parse(one.frozenAt) <= hours * 3_600_000) why.push("within");
  for (const [key, value] of rules.tags ?? []) if (one.tags[key] === value) why.push("tag");
  if (newer.length === 0) why.push("newest");
  return why;
}

test("keeps what a slow, obvious model keeps, for the same reasons", () => {
  const seed = Date.now() % 1_000_000;
  const random = seeded(seed);
  const zones = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"];
  const starts = ["2026-10-20", "2026-03-25", "2026-12-20", "2028-02-20", "2020-12-25"]; // DST, week 53, leap days
  let forgotten = 0;
  for (let round = 0; round < 150; round++) {
    const zone = zones[random(zones.length)]!;
    const stepMax = [20, 90, 600, 6000, 60_000][random(5)]!; // minutes
    let time = Date.parse(starts[random(starts.length)]!) + random(86_400) * 1000;
    const times = Array.from({ length: 1 + random(25) }, () => {
      time += (random(12) === 0 ? -1 : 1) * random(stepMax) * 60_000 + random(60_000); // now and then it goes back
      return [new Date(time).toISOString(), { t: String(random(4)) }] as const;
    });
    const maybe = (max: number): number | undefined => (random(3) === 0 ? 1 + random(max) : undefined);
    const hours = maybe(200);
    const rules: Rules = {
      last: maybe(5),
      ...Object.fromEntries(PERIODS.map((period) => [period, maybe(6)])),
      within: hours === undefined ? undefined : `${hours}h`,
      tags: random(4) === 0 ? [["t", "1"]] : [],
    };
    const all = taken(...times);
    const shuffled = all.toSorted(() => random(3) - 1);
    const found = kept(shuffled, rules, { zone });
    const shown = clock(zone);
    const known = new Map<string, string>();
    const periodOfTime = (period: Period, at: string): string => {
      const key = `${period} ${at}`;
      const name = known.get(key) ?? periodOf(period, Date.parse(at), shown);
      known.set(key, name);
      return name;
    };
    for (const one of all) {
      const expected = model(all, one, rules, periodOfTime);
      const reasons = found[one.generation]?.map((reason) => reason.split(" ")[0]) ?? [];
      expect(reasons, `seed ${seed}, round ${round}, generation ${one.generation}`).toEqual(expected);
      forgotten += Number(expected.length === 0);
    }
  }
  expect(forgotten, `seed ${seed}`).toBeGreaterThan(100);
});
