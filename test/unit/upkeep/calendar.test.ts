import { expect, test } from "vitest";
import { Calendar, parseDuration } from "../../../src/upkeep/calendar.ts";
import { seeded } from "../../support/seeded.ts";

const utc = new Calendar("UTC");
const berlin = new Calendar("Europe/Berlin");

test.each<[string, string, string, string, string]>([
  ["2026-11-22T03:00:00Z", "2026-11-22T03Z", "2026-11-22", "2026-W47", "2026-11"],
  ["2026-12-31T23:59:59.999Z", "2026-12-31T23Z", "2026-12-31", "2026-W53", "2026-12"],
  ["2027-01-03T12:00:00Z", "2027-01-03T12Z", "2027-01-03", "2026-W53", "2027-01"], // a Sunday
  ["2027-01-04T00:00:00Z", "2027-01-04T00Z", "2027-01-04", "2027-W01", "2027-01"],
  ["2024-12-30T00:00:00Z", "2024-12-30T00Z", "2024-12-30", "2025-W01", "2024-12"], // a Monday
  ["2020-12-31T00:00:00Z", "2020-12-31T00Z", "2020-12-31", "2020-W53", "2020-12"],
  ["2028-02-29T23:00:00Z", "2028-02-29T23Z", "2028-02-29", "2028-W09", "2028-02"],
  ["2026-01-01T00:00:00Z", "2026-01-01T00Z", "2026-01-01", "2026-W01", "2026-01"],
])("UTC, %s: %s, %s, %s, %s", (time, hourly, daily, weekly, monthly) => {
  const yearly = monthly.slice(0, 4);
  expect(utc.periods(new Date(time))).toEqual({ hourly, daily, weekly, monthly, yearly });
});

test.each<[string, string, string, string, string]>([
  ["Europe/Berlin", "2026-12-31T23:30:00Z", "2027-01-01T00+01:00", "2027-01-01", "2026-W53"],
  ["Europe/Berlin", "2026-03-29T00:59:59Z", "2026-03-29T01+01:00", "2026-03-29", "2026-W13"],
  ["Europe/Berlin", "2026-03-29T01:00:00Z", "2026-03-29T03+02:00", "2026-03-29", "2026-W13"],
  ["Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T02+02:00", "2026-10-25", "2026-W43"],
  ["Europe/Berlin", "2026-10-25T01:30:00Z", "2026-10-25T02+01:00", "2026-10-25", "2026-W43"],
  ["America/New_York", "2026-11-22T03:00:00Z", "2026-11-21T22-05:00", "2026-11-21", "2026-W47"],
  ["Asia/Kathmandu", "2026-11-22T18:15:00Z", "2026-11-23T00+05:45", "2026-11-23", "2026-W48"],
  ["Pacific/Apia", "2011-12-30T09:59:59Z", "2011-12-29T23-10:00", "2011-12-29", "2011-W52"],
  ["Pacific/Apia", "2011-12-30T10:00:00Z", "2011-12-31T00+14:00", "2011-12-31", "2011-W52"], // no 30th there
])("%s, %s: %s, %s, %s", (zone, time, hourly, daily, weekly) => {
  expect(new Calendar(zone).periods(new Date(time))).toMatchObject({ hourly, daily, weekly });
});

test("ISO weeks: Mondays begin them, each has seven days, and 4 January is in week 1", () => {
  for (let year = 1990; year < 2100; year++) {
    expect(utc.periods(new Date(Date.UTC(year, 0, 4))).weekly).toBe(`${year}-W01`);
    const days = new Map<string, number>();
    const isMonday = (day: number): boolean => new Date(Date.UTC(year, 0, day)).getUTCDay() === 1;
    let first = 1;
    while (!isMonday(first)) first++;
    let before = "";
    for (let day = first; day < first + 371; day++) {
      const { weekly } = utc.periods(new Date(Date.UTC(year, 0, day)));
      expect(weekly !== before, `${year} day ${day}`).toBe(isMonday(day));
      days.set(weekly, (days.get(weekly) ?? 0) + 1);
      before = weekly;
    }
    expect(new Set(days.values())).toEqual(new Set([7]));
  }
});

test.each<[Calendar, string, string, string]>([
  [utc, "2026-11-22T03:00:00.123Z", "14d", "2026-11-08T03:00:00.123Z"],
  [utc, "2026-11-22T03:00:00Z", "2w", "2026-11-08T03:00:00Z"],
  [utc, "2026-11-22T03:00:00Z", "6m", "2026-05-22T03:00:00Z"],
  [utc, "2026-11-22T03:00:00Z", "1y2m", "2025-09-22T03:00:00Z"],
  [utc, "2026-11-22T03:00:00Z", "36h", "2026-11-20T15:00:00Z"],
  [utc, "2026-03-31T03:00:00Z", "1m", "2026-02-28T03:00:00Z"],
  [utc, "2028-03-31T03:00:00Z", "1m", "2028-02-29T03:00:00Z"],
  [utc, "2028-02-29T03:00:00Z", "1y", "2027-02-28T03:00:00Z"],
  [utc, "2028-02-29T03:00:00Z", "4y", "2024-02-29T03:00:00Z"],
  [utc, "2026-01-15T03:00:00Z", "13m", "2024-12-15T03:00:00Z"],
  [utc, "2026-03-31T03:00:00Z", "1m1d", "2026-02-27T03:00:00Z"],
  // days leave the clocks' time as it is: this one was 25 hours long, that one 23
  [berlin, "2026-10-25T12:00:00Z", "1d", "2026-10-24T11:00:00Z"],
  [berlin, "2026-03-29T12:00:00Z", "1d", "2026-03-28T13:00:00Z"],
  [berlin, "2026-10-25T12:00:00Z", "24h", "2026-10-24T12:00:00Z"],
  // 02:30 came twice: the first; 02:30 did not come: as long after midnight as it would have been
  [berlin, "2026-10-26T01:30:00Z", "1d", "2026-10-25T00:30:00Z"],
  [berlin, "2026-03-30T00:30:00Z", "1d", "2026-03-29T01:30:00Z"],
])("%# %s less %s is %s", (calendar, time, duration, before) => {
  const expected = new Date(before).toISOString();
  expect(calendar.before(new Date(time), parseDuration(duration)).toISOString()).toBe(expected);
});

test("a longer duration never reaches less far back, in any zone", () => {
  const seed = Date.now() % 1_000_000;
  const random = seeded(seed);
  for (const zone of ["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia"]) {
    const calendar = new Calendar(zone);
    for (let round = 0; round < 300; round++) {
      const moment = new Date(Date.UTC(2010, 0, 1) + random(20 * 365 * 24 * 60) * 60_000);
      const days = 1 + random(800);
      const [near, far] = [`${days}d`, `${days + 1}d`].map((text) =>
        calendar.before(moment, parseDuration(text)).getTime(),
      );
      const what = `seed ${seed}: ${zone} ${moment.toISOString()} ${days}d`;
      expect(far!, what).toBeLessThanOrEqual(near!);
      expect(Math.abs(moment.getTime() - days * 86_400_000 - near!), what).toBeLessThanOrEqual(
        25 * 3_600_000,
      );
    }
  }
});

test.each(["", "0d", "d", "14", "14 d", "-3d", "1.5d", "14D", "1d2d", "3q", "1y2m!", "99999999d", "0y0m"])(
  "%j is no duration",
  (text) => {
    expect(() => parseDuration(text)).toThrow(expect.objectContaining({ kind: "usage", code: "E_DURATION" }));
  },
);

test.each(["", "Berlin", "Europe/Nowhere", "../etc", "UTC\n"])("%j is no time zone", (zone) => {
  expect(() => new Calendar(zone)).toThrow(expect.objectContaining({ kind: "usage", code: "E_TIMEZONE" }));
});

test("times for people are those of the zone", () => {
  const moment = new Date("2026-11-22T03:04:05.678Z");
  expect(utc.text(moment)).toBe("2026-11-22 03:04:05Z");
  expect(berlin.text(moment)).toBe("2026-11-22 04:04:05+01:00");
  expect(new Calendar("America/St_Johns").text(moment)).toBe("2026-11-21 23:34:05-03:30");
});
