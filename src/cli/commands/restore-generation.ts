import { Command } from "commander";
import { resolveForgotten, restoreGeneration } from "../../upkeep/restore-generation.ts";
import { action } from "../action.ts";
import { withRepository, type RepositoryFlags } from "../session.ts";

export function restoreGenerationCommand(): Command {
  return new Command("restore-generation")
    .summary("bring back a generation that was forgotten")
    .description(
      `Brings a forgotten generation back, as it was. That works until a prune clears it away, which is no earlier than the
prune's grace (24 hours unless it was told otherwise) after the generation was forgotten.`,
    )
    .argument("<generation>", "its id, or a unique prefix of it; blockhaul list --forgotten shows them")
    .addHelpText("after", "\nExample:\n  blockhaul restore-generation -r s3://my-bucket/vms 019aa8f0-1c00")
    .action(
      action(async (cli, command) => {
        await withRepository(command.optsWithGlobals<RepositoryFlags>(), cli, async (repository) => {
          const name = await resolveForgotten(repository, command.args[0]!, cli.run.signal);
          const { manifest, before } = await restoreGeneration(repository, name, cli.run.signal);
          const { source, generation, frozenAt } = manifest;
          cli.output.result({ source, generation, frozenAt, restored: !before }, () =>
            before
              ? `Generation ${generation} of ${source} was there all the time`
              : `Generation ${generation} of ${source}, of ${frozenAt}, is back`,
          );
        });
      }),
    );
}
