import { beforeEach, expect, test } from "vitest";
import type { RequestCounts } from "../../../src/store/store.ts";
import { ALL, expectAllRestore, thinPacks } from "../../support/thin-packs.ts";
import { DAY, forward, runPrune, stopClock } from "../../support/prunes.ts";

beforeEach(stopClock);

/** How much more than the real run sent, by operation. */
function excess(expected: RequestCounts, sent: RequestCounts): Record<string, number> {
  const operations = [...new Set([...Object.keys(expected), ...Object.keys(sent)])].sort();
  return Object.fromEntries(operations.map((one) => [one, (expected[one] ?? 0) - (sent[one] ?? 0)]));
}

test("a dry run tells what the run then sends, within a few", async () => {
  const { backups, contents } = await thinPacks();
  for (let time = 0; time < 3; time++) {
    const planned = await runPrune(backups.repository, { rewrite: ALL, dryRun: true });
    const done = await runPrune(backups.repository, { rewrite: ALL });
    const too = excess(planned.expectedRequests!, done.requests);
    for (const [operation, count] of Object.entries(too)) {
      expect(count, `${operation} of run ${time}: ${JSON.stringify(too)}`).toBeGreaterThanOrEqual(-5);
      expect(count, `${operation} of run ${time}: ${JSON.stringify(too)}`).toBeLessThanOrEqual(5);
    }
    expect(done.expectedRequests).toBeUndefined();
    await expectAllRestore(backups, contents);
    forward(DAY + 3_600_000);
  }
});
