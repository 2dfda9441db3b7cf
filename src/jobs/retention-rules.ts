import { parseTags } from "../settings.ts";
import { Calendar } from "../upkeep/calendar.ts";
import type { RetentionPolicy } from "../upkeep/retention.ts";
import type { RetentionEntry } from "./schema.ts";

/** The rules of an entry of a file of jobs, which are those of `forget`. */
export function retentionRules(entry: RetentionEntry): {
  readonly policy: RetentionPolicy;
  readonly calendar: Calendar;
} {
  const policy: RetentionPolicy = {
    last: entry.keep_last,
    periods: {
      hourly: entry.keep_hourly,
      daily: entry.keep_daily,
      weekly: entry.keep_weekly,
      monthly: entry.keep_monthly,
      yearly: entry.keep_yearly,
    },
    within: entry.keep_within,
    tags: (entry.keep_tags ?? []).flatMap((tag) => Object.entries(parseTags([tag]))),
  };
  return { policy, calendar: new Calendar(entry.timezone ?? "UTC") };
}
