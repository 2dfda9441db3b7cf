import { Command } from "commander";
import { formatSize } from "../../bytes/size.ts";
import { RUN_GRACE_MS } from "../../repository/pins.ts";
import { DEFAULT_GRACE_MS, parseGrace } from "../../upkeep/prune/grace.ts";
import { parseMaxRepack, parseMaxUnused } from "../../upkeep/prune/rewrite-limits.ts";
import type { PruneReport } from "../../upkeep/prune/prune-report.ts";
import { prune } from "../../upkeep/prune/prune.ts";
import type { Tally } from "../../upkeep/prune/survey.ts";
import { formatMoney, requestCost, storageCost, transferCost, type Prices } from "../../store/prices.ts";
import { action } from "../action.ts";
import { table } from "../output.ts";
import { pricesOf } from "../prices.ts";
import { isGone, thisProcess } from "../process.ts";
import { withRepository, type RepositoryFlags } from "../session.ts";

interface Flags extends RepositoryFlags {
  readonly dryRun?: boolean;
  readonly grace?: string;
  readonly maxUnused: string;
  readonly maxRepackBytes: string;
}

export function pruneCommand(): Command {
  return new Command("prune")
    .summary("remove what no generation needs")
    .description(
      `Removes what no generation needs, in two steps: it condemns what is older than the grace, and deletes what an earlier
prune condemned longer than the grace ago. So data of a forgotten generation goes with the second or third prune
after it; until the first, restore-generation brings the generation back.

What is in use of packs that have become thin is copied into new packs, and the thin ones go as well.

Backups and restores may run meanwhile. A damaged manifest or layer stops it before anything is condemned.`,
    )
    .option("--dry-run", "show what would be condemned and deleted; write nothing")
    .option(
      "--grace <TIME>",
      "leave alone what is younger, or was forgotten or condemned later: 24h, 3d, 2w; at least 2h",
      "24h",
    )
    .option(
      "--max-unused <SHARE>",
      "rewrite the thinnest packs until no more than this is dead in packs that are in use: 5%, 20GiB, unlimited",
      "5%",
    )
    .option(
      "--max-repack-bytes <SIZE>",
      "copy at most so many bytes for that: 50GiB, 0, unlimited",
      "unlimited",
    )
    .addHelpText(
      "after",
      `
Examples:
  blockhaul prune -r s3://my-bucket/vms --dry-run
  blockhaul prune -r s3://my-bucket/vms --grace 3d
  blockhaul prune -r s3://my-bucket/vms --max-unused 10% --max-repack-bytes 50GiB`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const graceMs = flags.grace === undefined ? DEFAULT_GRACE_MS : parseGrace(flags.grace);
        const rewrite = {
          maxUnused: parseMaxUnused(flags.maxUnused),
          maxRepackBytes: parseMaxRepack(flags.maxRepackBytes),
        };
        await withRepository(flags, cli, async (repository) => {
          const options = {
            graceMs,
            dryRun: flags.dryRun === true,
            lookup: { graceMs: RUN_GRACE_MS, isGone },
            holder: thisProcess(),
            warn: (message: string) => cli.output.warn(message),
            rewrite,
          };
          const prices = await pricesOf(repository.store);
          const report = await prune(repository, options, cli.run);
          const cost = prices && costOf(report, prices);
          cli.output.result({ ...report, cost: cost ?? null }, () => text(report, cost));
        });
      }),
    );
}

/** Money, in the currency of the price sheet. */
interface Cost {
  readonly prices: Prices;
  /** Of what was sent, or in a dry run would be. */
  readonly requests: number;
  /** Of the bytes that are copied, if they leave the provider's network on their way. */
  readonly transfer: number;
  /** No longer to be paid each month: for what is deleted now, and for what a later prune then deletes. */
  readonly savedMonthly: number;
  readonly savedMonthlyLater: number;
}

function costOf(report: PruneReport, prices: Prices): Cost {
  const { requests, expectedRequests = requests, deleted, condemned, waiting, rewritten } = report;
  return {
    prices,
    requests: requestCost(expectedRequests, prices),
    transfer: transferCost(rewritten.bytes, prices),
    savedMonthly: storageCost(deleted.bytes, prices),
    savedMonthlyLater: storageCost(condemned.bytes + waiting.bytes, prices),
  };
}

function text(report: PruneReport, cost: Cost | undefined): string {
  const would = report.dryRun ? "would be " : "";
  const rows: [string, Tally, string][] = [
    [
      "in use",
      report.live,
      `by ${counted(report.generations, "generation")}${forgottenToo(report.forgotten)}`,
    ],
    [`${would}deleted`, report.deleted, "condemned longer than the grace ago, and still of no use"],
    [`${would}condemned`, report.condemned, "of no use; a prune deletes it when the grace is over"],
    ["waiting", report.waiting, "condemned, the grace is not over"],
    ["kept", report.kept, "condemned, but a generation uses it all the same"],
    ["too young", report.young, "of no use yet: perhaps of a backup that is running"],
  ];
  const shown = rows.filter(([, tally], index) => index === 0 || tally.packs + tally.layers > 0);
  const lines = shown.map(([what, { packs, layers, bytes }, why]) => [
    what,
    String(packs),
    String(layers),
    formatSize(bytes),
    why,
  ]);
  const freed = `${report.dryRun ? "Would free" : "Freed"} ${formatSize(report.deleted.bytes)}`;
  const later = report.condemned.bytes + report.waiting.bytes;
  const summary = later === 0 ? freed : `${freed}; ${formatSize(later)} will be freed by a later prune`;
  return [
    table(["", "PACKS", "LAYERS", "SIZE", "WHY"], lines),
    summary,
    ...rewritten(report),
    ...tidied(report),
    ...(report.locksExtended > 0 ? [`Locked anew: ${counted(report.locksExtended, "object")}`] : []),
    ...sent(report, cost),
  ].join("\n");
}

function sent(
  { dryRun, requests, expectedRequests = requests }: PruneReport,
  cost: Cost | undefined,
): string[] {
  const counts = Object.entries(expectedRequests).map(([operation, count]) => `${operation} ${count}`);
  if (counts.length === 0 || cost === undefined) return [];
  const { prices, requests: price, transfer, savedMonthly, savedMonthlyLater } = cost;
  const money = (amount: number): string => formatMoney(amount, prices);
  const moved = transfer > 0 ? `, and ${money(transfer)} for transfer unless it runs next to the bucket` : "";
  const later =
    savedMonthlyLater > 0 ? `, and ${money(savedMonthlyLater)} when a later prune has deleted the rest` : "";
  return [
    `${dryRun ? "Would send about" : "Sent"}: ${counts.join(", ")}; ${money(price)}${moved}`,
    `Saves ${money(savedMonthly)} a month${later} (${prices.name}, ${prices.asOf})`,
  ];
}

function rewritten({ dryRun, rewritten: thin }: PruneReport): string[] {
  const lines: string[] = [];
  if (thin.packs > 0) {
    const what = `${counted(thin.packs, "thin pack")}, ${formatSize(thin.bytes)} copied`;
    const frees = `${formatSize(thin.freedBytes)} will be freed when they are deleted`;
    lines.push(`${dryRun ? "Would rewrite" : "Rewrote"} ${what}; ${frees}`);
  }
  if (thin.damaged > 0)
    lines.push(`Found ${counted(thin.damaged, "damaged chunk")}, which stay where they are`);
  return lines;
}

function forgottenToo(forgotten: number): string {
  return forgotten === 0 ? "" : `, and ${forgotten} forgotten that can be brought back`;
}

function tidied({ dryRun, tidied: gone, indexesReplaced }: PruneReport): string[] {
  const kinds = [
    [gone.forgotten, "copy of a forgotten manifest", "copies of forgotten manifests"],
    [gone.runs, "record of a run", "records of runs"],
    [gone.leases, "dead lease", "dead leases"],
    [gone.damaged, "record of damage", "records of damage"],
    [gone.condemned, "record of what was deleted", "records of what was deleted"],
    [gone.forwards, "forward of no use", "forwards of no use"],
    [gone.profiles, "profile of what was read long ago", "profiles of what was read long ago"],
    [indexesReplaced, "index object, replaced", "index objects, replaced"],
  ] as const;
  const some = kinds.filter(([count]) => count > 0);
  if (some.length === 0) return [];
  const list = some.map(([count, one, many]) => `${count} ${count === 1 ? one : many}`).join(", ");
  return [`${dryRun ? "Would remove" : "Removed"} besides: ${list}`];
}

function counted(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? "" : "s"}`;
}
