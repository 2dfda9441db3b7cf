import { mkdtemp, rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import type { Command } from "commander";
import { parseSize } from "../bytes/size.ts";
import { AppError, messageOf } from "../errors.ts";
import type { StoredManifest } from "../repository/manifest.ts";
import { resolveGeneration } from "../repository/resolve-generation.ts";
import { withStandingPin } from "../serve/standing-pin.ts";
import { withThrowaway, type Throwaway, type WritableDisk } from "../serve/throwaway.ts";
import type { CliContext } from "./action.ts";
import { disksOf } from "./commands/serve.ts";
import { packageVersion, thisProcess } from "./process.ts";
import { withSession, type RepositoryFlags } from "./session.ts";

/** Of commands that show a generation to programs of this machine. */
export interface ThrowawayFlags extends RepositoryFlags {
  readonly disk: readonly string[];
  readonly scratch: string;
  readonly cacheMemory: string;
}

export function addThrowawayFlags(command: Command): Command {
  const collect = (value: string, previous: readonly string[]): readonly string[] => [...previous, value];
  return command
    .option("--disk <NAME>", "of this disk only; repeat for several", collect, [])
    .option("--scratch <DIR>", "for what is written on the way; it is removed afterwards", "/var/tmp")
    .option("--cache-memory <SIZE>", "memory for chunks that were read", "256MiB");
}

/** Serves the generation while `work` goes on, under a folder of its own that is removed afterwards. */
export async function withServedGeneration(
  name: string,
  flags: ThrowawayFlags,
  cli: CliContext,
  work: (served: Throwaway<WritableDisk>, manifest: StoredManifest, folder: string) => Promise<void>,
): Promise<void> {
  const { output, run } = cli;
  const { signal } = run;
  await withSession(flags, cli, async (session) => {
    const manifest = await resolveGeneration(session.repository, name, signal);
    const disks = disksOf(manifest, flags.disk);
    const pin = {
      purpose: "serve" as const,
      host: thisProcess().host,
      writer: `blockhaul ${packageVersion()}`,
      unpinned: (message: string) => output.info(message),
      warn: (message: string) => output.warn(message),
    };
    await withStandingPin(session.repository, manifest, pin, signal, async () => {
      const folder = await newFolder(resolve(flags.scratch));
      try {
        const wish = { folder, cacheBytes: parseSize(flags.cacheMemory), wrap: (disk: WritableDisk) => disk };
        await withThrowaway(session, manifest, disks, wish, signal, (served) =>
          work(served, manifest, folder),
        );
      } finally {
        await rm(folder, { recursive: true, force: true });
      }
    });
  });
}

async function newFolder(scratch: string): Promise<string> {
  try {
    return await mkdtemp(join(scratch, "blockhaul-files-"));
  } catch (error) {
    const message = `No folder can be made in ${scratch}; name another with --scratch: ${messageOf(error)}`;
    throw new AppError("usage", "E_SCRATCH", message, {}, error);
  }
}
