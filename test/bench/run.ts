/**
 * Measures what the project promises, against other programs in the same run, and prints one table.
 *
 *     npm run bench [-- [--rounds N] [NAME…]]
 *
 * Ends with code 1 when a bar is missed. Wants 15 GB below `BLOCKHAUL_BENCH_DIR` (or the system's folder for temporary files), and
 * a machine that does nothing else.
 */
import { parseArgs } from "node:util";
import { encrypted, fullDirectory, sparseMemory } from "./full-directory.ts";
import { drill } from "./drill.ts";
import { freeze } from "./freeze.ts";
import { fullMinio } from "./full-minio.ts";
import { type Finding, printFindings } from "./harness.ts";
import { incremental, unchangedRescan } from "./incremental.ts";
import { openGeneration } from "./open-generation.ts";
import { pruneMemory } from "./prune.ts";
import { serve } from "./serve.ts";

const BENCHES: Readonly<Record<string, (rounds: number) => Promise<Finding[]>>> = {
  "full-directory": fullDirectory,
  encrypted,
  "sparse-memory": sparseMemory,
  "full-minio": fullMinio,
  "unchanged-rescan": unchangedRescan,
  incremental,
  "open-generation": openGeneration,
  prune: pruneMemory,
  freeze,
  serve,
  drill,
};

const { values, positionals } = parseArgs({
  options: { rounds: { type: "string", default: "3" } },
  allowPositionals: true,
});
const unknown = positionals.find((name) => BENCHES[name] === undefined);
if (unknown !== undefined)
  throw new Error(`no bench "${unknown}"; there are ${Object.keys(BENCHES).join(", ")}`);

const findings: Finding[] = [];
for (const [name, bench] of Object.entries(BENCHES)) {
  if (positionals.length > 0 && !positionals.includes(name)) continue;
  console.error(name);
  try {
    findings.push(...(await bench(Number(values.rounds))));
  } catch (error) {
    console.error(error);
    findings.push({ what: name, found: "failed", bar: "", met: false });
  }
}
printFindings(findings);
if (findings.some(({ met }) => met === false)) process.exitCode = 1;
