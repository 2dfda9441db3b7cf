import { spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import { once } from "node:events";
import { join } from "node:path";
import { expect, test } from "vitest";

const SEED = Number(process.env["BLOCKHAUL_TEST_SEED"] ?? randomInt(1, 2 ** 31));
const SECONDS = Number(process.env["BLOCKHAUL_FUZZ_SECONDS"] ?? 55);
/** Of heap, MiB: a decoder that builds more than that out of half a MiB of input is ended. */
const HEAP_MAX = 512;

test(
  `no decoder hangs, takes more memory than it may, or throws what is not ours (seed ${SEED})`,
  { timeout: SECONDS * 1000 + 120_000 },
  async () => {
    const args = [`--max-old-space-size=${HEAP_MAX}`, join(import.meta.dirname, "main.ts")];
    const child = spawn(process.execPath, [...args, `--seed=${SEED}`, `--minutes=${SECONDS / 60}`], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    let said = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => (said += text));
    }
    const [code, signal] = (await once(child, "close")) as [number | null, string | null];
    expect({ code, signal }, said).toEqual({ code: 0, signal: null });
    const { cases } = JSON.parse(said.trimEnd().split("\n").at(-1)!) as { cases: number };
    expect(cases, "inputs that were tried").toBeGreaterThan(1000);
  },
);
