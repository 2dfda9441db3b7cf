/**
 * Runs the program under faults for a while, and after every round holds what is stored against what must be there.
 *
 *     npm run test:fault [-- --seed N --minutes M --life L]
 *
 * The same seed plans the same faults; when they strike depends on the machine. `--life L` begins with that repository
 * of a seed. Ends with code 1 when anything was lost or wrong; Ctrl-C ends it sooner, with a report.
 */
import { randomInt } from "node:crypto";
import { parseArgs } from "node:util";
import { runCampaign } from "./campaign.ts";
import { Report } from "./report.ts";

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: `${randomInt(1, 2 ** 31)}` },
    minutes: { type: "string", default: "10" },
    life: { type: "string", default: "0" },
  },
});
const [seed, minutes, firstLife] = [Number(values.seed), Number(values.minutes), Number(values.life)];
if (!Number.isInteger(seed) || !(minutes > 0) || !Number.isInteger(firstLife)) {
  throw new Error("usage: npm run test:fault -- --seed N --minutes M --life L");
}

const stop = new AbortController();
const report = new Report();
const say = (line: string): void => console.error(line);
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => {
    say(`${signal}: the last round`);
    stop.abort();
  });
}
say(`seed ${seed}`);
try {
  const untilMs = performance.now() + minutes * 60_000;
  await runCampaign({ seed, firstLife, untilMs, stop: stop.signal, report, say });
} finally {
  for (const what of [...report.problems, ...report.losses]) console.log(what);
  console.log(report.table());
  console.log(report.toString());
}
if (report.problems.length + report.losses.length > 0) process.exitCode = 1;
