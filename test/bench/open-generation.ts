import { mkdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { formatSize, KiB, MiB, TiB } from "../../src/bytes/size.ts";
import { createRepository } from "../../src/repository/config.ts";
import { DirectoryStore } from "../../src/store/directory.ts";
import { simulateDisk } from "../support/simulated-disk.ts";
import { atMost, type Finding, inFolder, measure, note } from "./harness.ts";

const PROCESS = resolve(import.meta.dirname, "open-generation-process.js");
const SECONDS_BAR = 2;
const RSS_BAR = 100 * MiB;

const CASES = [
  { name: "as a full backup leaves it", duplicatePercent: 0 },
  { name: "one chunk in ten found elsewhere", duplicatePercent: 10 },
  // a disk that no dedup could scatter so: told, not judged
  { name: "every chunk in another pack", duplicatePercent: 100 },
];

/** Opens a generation of a full 1 TiB disk with ten incrementals on top, and looks 1,000 random chunks up. */
export async function openGeneration(): Promise<Finding[]> {
  return inFolder(async (folder) => {
    const findings: Finding[] = [];
    for (const [seed, { name, duplicatePercent }] of CASES.entries()) {
      const location = join(folder, String(seed));
      mkdirSync(location);
      findings.push(...(await openOne(location, `1 TiB, ${name}`, seed, duplicatePercent)));
    }
    return findings;
  });
}

async function openOne(
  location: string,
  name: string,
  seed: number,
  duplicatePercent: number,
): Promise<Finding[]> {
  const { signal } = new AbortController();
  const repository = await createRepository(new DirectoryStore(location), {}, signal);
  const shape = {
    size: TiB,
    chunkSize: 256 * KiB,
    incrementals: 10,
    dirtyChunks: 1000,
    duplicatePercent,
    seed,
  };
  const disk = await simulateDisk(repository, shape, signal);
  repository.store.close();
  const child = await measure({ program: process.execPath, args: [PROCESS, location, JSON.stringify(disk)] });
  const { openMs, lookupsMs, peakRssBytes } = JSON.parse(child.stdout) as Record<
    "openMs" | "lookupsMs" | "peakRssBytes",
    number
  >;
  return [
    atMost(`${name}: open`, openMs / 1000, SECONDS_BAR, (seconds) => `${seconds.toFixed(3)} s`),
    duplicatePercent === 100
      ? note("its peak RSS, Node included", formatSize(peakRssBytes))
      : atMost("its peak RSS, Node included", peakRssBytes, RSS_BAR, formatSize),
    note("1,000 lookups", `${lookupsMs.toFixed(0)} ms`),
  ];
}
