import { Command } from "commander";
import { formatSize } from "../../bytes/size.ts";
import { formatMoney, storageCost } from "../../store/prices.ts";
import { repositoryStats, type ObjectTotals } from "../../upkeep/stats.ts";
import { action } from "../action.ts";
import { pricesOf } from "../prices.ts";
import { withRepository, type RepositoryFlags } from "../session.ts";

export function statsCommand(): Command {
  return new Command("stats")
    .summary("show what the repository holds")
    .addHelpText("after", "\nExample:\n  blockhaul stats -r s3://my-bucket/vms")
    .action(
      action(async (cli, command) => {
        await withRepository(command.optsWithGlobals<RepositoryFlags>(), cli, async (repository) => {
          const stats = await repositoryStats(repository, cli.run.signal);
          const stored = stats.packs.bytes + stats.layers.bytes + stats.index.bytes + stats.manifests.bytes;
          const prices = await pricesOf(repository.store);
          const monthly = prices === undefined ? null : storageCost(stored, prices);
          cli.output.result({ ...stats, storedBytes: stored, monthlyCost: monthly }, () =>
            [
              `${stats.generations} generations of ${stats.sources} sources, ${formatSize(stats.logicalBytes)} if each were restored`,
              `stored ${formatSize(stored)}${stored === 0 ? "" : `, ${(stats.logicalBytes / stored).toFixed(1)} times less`}`,
              `  packs      ${objects(stats.packs)}`,
              `  layers     ${objects(stats.layers)}`,
              `  index      ${objects(stats.index)}`,
              `  manifests  ${objects(stats.manifests)}`,
              ...(prices === undefined
                ? []
                : [
                    `${formatMoney(storageCost(stored, prices), prices)} a month (${prices.name}, ${prices.asOf})`,
                  ]),
            ].join("\n"),
          );
        });
      }),
    );
}

function objects(totals: ObjectTotals): string {
  return `${formatSize(totals.bytes)} in ${totals.count} objects`;
}
