/**
 * `blockhaul prune` with a grace of seconds, which the command line refuses: lives here last minutes. All else is as
 * there, its end by signals and its exit codes included.
 *
 *     node test/fault/campaign/prune-process.ts prune --grace-ms N -r REPO
 */
import { Command } from "commander";
import { action } from "../../../src/cli/action.ts";
import { isGone, thisProcess } from "../../../src/cli/process.ts";
import { withRepository, type RepositoryFlags } from "../../../src/cli/session.ts";
import { RUN_GRACE_MS } from "../../../src/repository/pins.ts";
import { prune } from "../../../src/upkeep/prune/prune.ts";

interface Flags extends RepositoryFlags {
  readonly graceMs: string;
}

const pruning = new Command("prune")
  .option("-r, --repository <REPO>")
  .option("--cache-dir <DIR>")
  .option("--json")
  .requiredOption("--grace-ms <N>")
  .action(
    action(async (cli, command) => {
      const flags = command.optsWithGlobals<Flags>();
      await withRepository(flags, cli, async (repository) => {
        const options = {
          graceMs: Number(flags.graceMs),
          dryRun: false,
          lookup: { graceMs: RUN_GRACE_MS, isGone },
          holder: thisProcess(),
          warn: (message: string) => cli.output.warn(message),
          rewrite: { maxUnused: { percent: 5 }, maxRepackBytes: Infinity },
        };
        const report = await prune(repository, options, cli.run);
        cli.output.result(report, () => "pruned");
      });
    }),
  );

await new Command().addCommand(pruning).parseAsync();
