import type { RequestCounts } from "./store.ts";

/** What was sent between two looks at a store's counts; operations that were not sent are left out. */
export function requestsSince(before: RequestCounts, now: RequestCounts): RequestCounts {
  const sent: Record<string, number> = {};
  for (const [operation, count] of Object.entries(now)) {
    const since = count - (before[operation] ?? 0);
    if (since > 0) sent[operation] = since;
  }
  return sent;
}
