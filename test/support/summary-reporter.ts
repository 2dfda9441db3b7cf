import type { Reporter, TestModule } from "vitest/node";

/**
 * Ends the output with one line for CI, "tests: N passed, N failed, N skipped". With CI=true a skipped test is a
 * failure: what was not run proved nothing.
 */
export class SummaryReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]): void {
    const counts = { passed: 0, failed: 0, skipped: 0, pending: 0 };
    for (const module of modules) {
      for (const test of module.children.allTests()) counts[test.result().state]++;
      if (module.state() === "failed" && [...module.children.allTests("failed")].length === 0)
        counts.failed++;
    }
    const skipped = counts.skipped + counts.pending;
    if (process.env["CI"] !== undefined && skipped > 0) process.exitCode = 1;
    // After the default reporter's own last words.
    process.on("exit", () =>
      console.log(`tests: ${counts.passed} passed, ${counts.failed} failed, ${skipped} skipped`),
    );
  }
}
