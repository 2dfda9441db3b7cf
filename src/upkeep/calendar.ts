import { AppError } from "../errors.ts";

const UNITS = { y: "years", m: "months", w: "weeks", d: "days", h: "hours" } as const;

/** A span of the calendar: a month of it is as long as the month is. */
export type Duration = Readonly<Record<(typeof UNITS)[keyof typeof UNITS], number>>;

const DURATION_FORM = /^(?:\d{1,5}[ymwdh])+$/;

/**
 * "14d", "6m", "1y2m", "36h": years, months, weeks, days and hours, each at most once.
 * @throws AppError E_DURATION (usage).
 */
export function parseDuration(text: string): Duration {
  const duration = { years: 0, months: 0, weeks: 0, days: 0, hours: 0 };
  const seen = new Set<string>();
  for (const [, count, unit] of DURATION_FORM.test(text) ? text.matchAll(/(\d+)([ymwdh])/g) : []) {
    if (seen.has(unit!)) throw durationError(text);
    seen.add(unit!);
    duration[UNITS[unit as keyof typeof UNITS]] = Number(count);
  }
  if (Object.values(duration).every((count) => count === 0)) throw durationError(text);
  return duration;
}

function durationError(text: string): AppError {
  const message = `Not a duration: "${text}"; write 14d, 6m, 1y2m or 36h (years, months, weeks, days, hours)`;
  return new AppError("usage", "E_DURATION", message);
}

/** The calendar periods that a retention policy counts, longest last. */
export const PERIODS = ["hourly", "daily", "weekly", "monthly", "yearly"] as const;

export type Period = (typeof PERIODS)[number];

const DAY_MS = 86_400_000;
const HOUR_MS = 3_600_000;

/** Which hour, day, week, month and year it is, on the clocks of one time zone. */
export class Calendar {
  readonly #format: Intl.DateTimeFormat;

  /**
   * @param zone an IANA name ("UTC", "Europe/Berlin").
   * @throws AppError E_TIMEZONE (usage).
   */
  constructor(zone: string) {
    try {
      this.#format = new Intl.DateTimeFormat("en-US", {
        timeZone: zone,
        calendar: "gregory",
        numberingSystem: "latn",
        hourCycle: "h23",
        year: "numeric",
        month: "numeric",
        day: "numeric",
        hour: "numeric",
        minute: "numeric",
        second: "numeric",
      });
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      const message = `Not a time zone: "${zone}"; write its IANA name, as UTC or Europe/Berlin`;
      throw new AppError("usage", "E_TIMEZONE", message, { zone }, error);
    }
  }

  /**
   * The names of the periods that a moment lies in: "2026-11-22T03Z" or "2026-11-22T04+01:00", "2026-11-22",
   * "2026-W47", "2026-11", "2026". An hour that clocks show twice, when summer ends, is two: so its name has the offset.
   * Weeks are those of ISO 8601: from Monday, and of the year that their Thursday is in.
   */
  periods(moment: Date): Readonly<Record<Period, string>> {
    const wall = this.#wall(moment.getTime());
    const text = new Date(wall).toISOString();
    return {
      hourly: `${text.slice(0, 13)}${offsetText(wall - wholeSeconds(moment))}`,
      daily: text.slice(0, 10),
      weekly: isoWeek(wall),
      monthly: text.slice(0, 7),
      yearly: text.slice(0, 4),
    };
  }

  /** "2026-11-22 03:00:00Z" or "2026-11-22 04:00:00+01:00". */
  text(moment: Date): string {
    const wall = this.#wall(moment.getTime());
    const [day, time] = new Date(wall).toISOString().split(/[T.]/) as [string, string];
    return `${day} ${time}${offsetText(wall - wholeSeconds(moment))}`;
  }

  /**
   * The moment a duration earlier. Years, months, weeks and days leave the time of day as the clocks show it; a day that
   * the month does not have is its last; hours are 60 minutes each. Of two moments that clocks show alike, the earlier.
   */
  before(moment: Date, { years, months, weeks, days, hours }: Duration): Date {
    const wall = new Date(this.#wall(moment.getTime()));
    const month = wall.getUTCMonth() - months - 12 * years;
    const day = Math.min(wall.getUTCDate(), daysIn(wall.getUTCFullYear(), month));
    wall.setUTCMonth(month, day);
    const earlier = wall.getTime() - (7 * weeks + days) * DAY_MS;
    return new Date(this.#moment(earlier) + (moment.getTime() % 1000) - hours * HOUR_MS);
  }

  /** What clocks show, as if it were UTC: milliseconds, in whole seconds. */
  #wall(time: number): number {
    const parts: Record<string, number> = {};
    for (const { type, value } of this.#format.formatToParts(time)) parts[type] = Number(value);
    const { year, month, day, hour, minute, second } = parts;
    return Date.UTC(year!, month! - 1, day, hour, minute, second);
  }

  /** The first moment at which clocks show `wall`; in the hour that they skip, the same time after their last change. */
  #moment(wall: number): number {
    // offsets of a day before and after: there is no zone that changes twice within two days
    const [early, late] = [wall - DAY_MS, wall + DAY_MS].map((time) => wall - (this.#wall(time) - time));
    const shown = [early!, late!].filter((time) => this.#wall(time) === wall);
    return shown.length > 0 ? Math.min(...shown) : early!;
  }
}

function wholeSeconds(moment: Date): number {
  return Math.floor(moment.getTime() / 1000) * 1000;
}

/** "Z", "+01:00". */
function offsetText(offsetMs: number): string {
  if (offsetMs === 0) return "Z";
  return `${offsetMs < 0 ? "-" : "+"}${new Date(Math.abs(offsetMs)).toISOString().slice(11, 16)}`;
}

function daysIn(year: number, month: number): number {
  return new Date(Date.UTC(year, month + 1, 0)).getUTCDate();
}

/** "2026-W47". @param wall a local time as if it were UTC, milliseconds. */
function isoWeek(wall: number): string {
  const thursday = new Date(wall + (4 - (new Date(wall).getUTCDay() || 7)) * DAY_MS);
  const year = thursday.getUTCFullYear();
  const week = Math.floor((thursday.getTime() - Date.UTC(year, 0, 1)) / (7 * DAY_MS)) + 1;
  return `${year}-W${String(week).padStart(2, "0")}`;
}
