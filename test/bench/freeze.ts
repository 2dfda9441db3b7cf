import { join } from "node:path";
import { startGuest } from "../support/guest/guest.ts";
import { blockhaul, type Finding, inFolder, measure, medianOf, note } from "./harness.ts";

const RUNS = 50;

interface Report {
  readonly kind: string;
  readonly consistency: string;
  readonly guest: { readonly frozenMs: number; readonly takeMs: number };
}

/** How long a real guest that writes all the time stands frozen: a full and 49 incrementals of two disks. */
export async function freeze(): Promise<Finding[]> {
  return inFolder(async (folder) => {
    const guest = await startGuest({ disks: 2, writer: true });
    const env = {
      BLOCKHAUL_REPOSITORY: join(folder, "repository"),
      BLOCKHAUL_CACHE_DIR: join(folder, "cache"),
    };
    try {
      await measure(blockhaul(["init"], env));
      const backup = ["backup", `qmp:${guest.qmp}`, "--name", "vm", "--guest-agent", guest.agent, "--json"];
      const reports: Report[] = [];
      for (let run = 0; run < RUNS; run++) {
        reports.push(JSON.parse((await measure(blockhaul(backup, env))).stdout) as Report);
      }
      const odd = reports.find(
        ({ kind, consistency }, run) =>
          kind !== (run === 0 ? "full" : "incremental") || consistency !== "filesystem",
      );
      if (odd !== undefined) throw new Error(`a run was ${odd.kind}, ${odd.consistency} consistent`);
      return [
        times(
          "guest frozen, request to freeze until thawed",
          reports.map(({ guest: { frozenMs } }) => frozenMs),
        ),
        times(
          "the instant itself (transaction)",
          reports.map(({ guest: { takeMs } }) => takeMs),
        ),
      ];
    } finally {
      await guest.close();
    }
  });
}

function times(what: string, ms: readonly number[]): Finding {
  const median = medianOf(ms).toFixed(1);
  return note(`${what}, ${ms.length} runs`, `median ${median} ms, most ${Math.max(...ms).toFixed(1)} ms`);
}
