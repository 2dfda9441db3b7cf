import type { Command } from "commander";
import { AppError } from "../errors.ts";
import { parseTags } from "../settings.ts";
import { Calendar, parseDuration } from "../upkeep/calendar.ts";
import { checkPolicy, type RetentionPolicy } from "../upkeep/retention.ts";

const COUNT_MAX = 100_000;

/** The rules of a policy, as the command line gives them. */
export interface RetentionFlags {
  readonly keepLast?: string;
  readonly keepHourly?: string;
  readonly keepDaily?: string;
  readonly keepWeekly?: string;
  readonly keepMonthly?: string;
  readonly keepYearly?: string;
  readonly keepWithin?: string;
  readonly keepTag: readonly string[];
  readonly timezone: string;
}

const collect = (value: string, all: readonly string[]): string[] => [...all, value];

export function addRetentionFlags(command: Command): Command {
  return command
    .option("--keep-last <N>", "the newest N")
    .option("--keep-hourly <N>", "the newest of each of the last N hours that have any")
    .option("--keep-daily <N>", "the same for days")
    .option("--keep-weekly <N>", "for weeks, from Monday (ISO 8601)")
    .option("--keep-monthly <N>", "for months")
    .option("--keep-yearly <N>", "for years")
    .option("--keep-within <DURATION>", "those at most so much older than the newest: 14d, 6m, 1y2m, 36h")
    .option("--keep-tag <KEY=VALUE>", "those with this tag; repeatable", collect, [])
    .option("--timezone <ZONE>", "whose hours, days, weeks: an IANA name, as Europe/Berlin", "UTC");
}

/** True when any rule was given. */
export function hasRules(flags: RetentionFlags): boolean {
  const { keepLast, keepHourly, keepDaily, keepWeekly, keepMonthly, keepYearly, keepWithin, keepTag } = flags;
  const rules = [keepLast, keepHourly, keepDaily, keepWeekly, keepMonthly, keepYearly, keepWithin];
  return keepTag.length > 0 || rules.some((rule) => rule !== undefined);
}

/** @throws AppError (usage) E_NO_RULE, E_FLAG, E_DURATION, E_TAG, E_TIMEZONE. */
export function retentionPolicy(flags: RetentionFlags): {
  readonly policy: RetentionPolicy;
  readonly calendar: Calendar;
} {
  const calendar = new Calendar(flags.timezone);
  if (flags.keepWithin !== undefined) parseDuration(flags.keepWithin);
  const policy: RetentionPolicy = {
    last: count("--keep-last", flags.keepLast),
    periods: {
      hourly: count("--keep-hourly", flags.keepHourly),
      daily: count("--keep-daily", flags.keepDaily),
      weekly: count("--keep-weekly", flags.keepWeekly),
      monthly: count("--keep-monthly", flags.keepMonthly),
      yearly: count("--keep-yearly", flags.keepYearly),
    },
    within: flags.keepWithin,
    // one by one: two values of one key are two rules
    tags: flags.keepTag.flatMap((flag) => Object.entries(parseTags([flag]))),
  };
  checkPolicy(policy);
  return { policy, calendar };
}

function count(flag: string, value: string | undefined): number | undefined {
  if (value === undefined) return undefined;
  const number = /^\d+$/.test(value) ? Number(value) : 0;
  if (number >= 1 && number <= COUNT_MAX) return number;
  const message = `${flag} takes a whole number from 1 to ${COUNT_MAX}, not "${value}"; leave it out for none`;
  throw new AppError("usage", "E_FLAG", message);
}
