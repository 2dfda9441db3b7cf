import { Command } from "commander";
import { AppError } from "../../errors.ts";
import type { Repository } from "../../repository/config.ts";
import type { GenerationName } from "../../repository/generations.ts";
import { holdGeneration, listHeld, releaseGeneration, type Hold } from "../../repository/holds.ts";
import { resolveGeneration } from "../../repository/resolve-generation.ts";
import { action } from "../action.ts";
import { packageVersion, thisProcess } from "../process.ts";
import { withRepository, type RepositoryFlags } from "../session.ts";

interface Flags extends RepositoryFlags {
  readonly reason?: string;
}

const REASON_MAX = 1024;

export function holdCommand(): Command {
  return new Command("hold")
    .summary("keep a generation until it is released")
    .description("Holds a generation: no forget removes it, whatever the rules, not even by its id.")
    .argument("<generation>", "an id, a unique prefix of one, latest, NAME, NAME@latest, or NAME@TIME")
    .option("--reason <TEXT>", "why, for people")
    .addHelpText(
      "after",
      "\nExample:\n  blockhaul hold -r s3://my-bucket/vms web@latest --reason 'before the upgrade'",
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const reason = checkReason(flags.reason);
        await withRepository(flags, cli, async (repository) => {
          const { source, generation } = await resolveGeneration(
            repository,
            command.args[0]!,
            cli.run.signal,
          );
          const writer = `blockhaul ${packageVersion()}`;
          const details = { reason, host: thisProcess().host, writer };
          const name = { source, generation };
          const { hold, before } = await holdGeneration(repository, name, details, cli.run.signal);
          if (before && reason !== null && hold.reason !== reason) {
            cli.output.warn(
              "It was held before, and the reason of then stays; release it first to give another",
            );
          }
          const held = { heldAt: hold.heldAt, reason: hold.reason };
          cli.output.result({ source, generation, held }, () => text(hold, before));
        });
      }),
    );
}

export function releaseCommand(): Command {
  return new Command("release")
    .summary("end the hold of a generation")
    .argument("<generation>", "as for hold")
    .addHelpText("after", "\nExample:\n  blockhaul release -r s3://my-bucket/vms web@2026-11-22T03:00Z")
    .action(
      action(async (cli, command) => {
        await withRepository(command.optsWithGlobals<RepositoryFlags>(), cli, async (repository) => {
          const { source, generation } = await resolveHeld(repository, command.args[0]!, cli.run.signal);
          await releaseGeneration(repository, { source, generation }, cli.run.signal);
          const document = { source, generation, held: null };
          cli.output.result(document, () => `Generation ${generation} of ${source} is not held any more`);
        });
      }),
    );
}

/** A whole id of something held needs no manifest: a hold can be ended whose generation is damaged or gone. */
async function resolveHeld(
  repository: Repository,
  text: string,
  signal: AbortSignal,
): Promise<GenerationName> {
  const held = await listHeld(repository, undefined, signal);
  const found = held.find(({ generation }) => generation === text.toLowerCase());
  return found ?? (await resolveGeneration(repository, text, signal));
}

/** @throws AppError E_REASON (usage). */
function checkReason(reason: string | undefined): string | null {
  if (reason === undefined) return null;
  if (reason.trim() !== "" && reason.length <= REASON_MAX) return reason;
  throw new AppError("usage", "E_REASON", `--reason takes a text of 1 to ${REASON_MAX} characters`);
}

function text({ source, generation, heldAt, reason }: Hold, before: boolean): string {
  const since = before ? `was held already, since ${heldAt}` : "is held";
  return `Generation ${generation} of ${source} ${since}${reason === null ? "" : `: ${reason}`}`;
}
