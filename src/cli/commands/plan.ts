import { Command } from "commander";
import { estimateBackup, type Estimate, type Expected } from "../../backup/estimate.ts";
import { formatSize } from "../../bytes/size.ts";
import { formatMoney, requestCost, storageCost, type Prices } from "../../store/prices.ts";
import type { RequestCounts } from "../../store/store.ts";
import { action } from "../action.ts";
import { table } from "../output.ts";
import { pricesOf } from "../prices.ts";
import { withSession } from "../session.ts";
import { addSourceFlags, requestOf, type SourceFlags } from "../source-flags.ts";

export function planCommand(): Command {
  const command = new Command("plan")
    .summary("say what the next backup would read, upload, request and cost")
    .description(
      `Says what the next backup of a source would read, upload, request and cost, and writes nothing.

What it reads at most is told by the dirty bitmap, or by what the exports say is allocated. How much of that is new and how
small it gets, nobody knows before: the estimate goes by the newest backup of the same kind.`,
    );
  return addSourceFlags(command)
    .addHelpText(
      "after",
      `
Examples:
  blockhaul plan -r s3://my-bucket/vms qmp:/run/web/qmp.sock --name web
  blockhaul plan -r s3://my-bucket/vms nbd://127.0.0.1/web --name web --full`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<SourceFlags>();
        const requestFor = requestOf(flags, command.args[0], cli);
        await withSession(flags, cli, async (session) => {
          const prices = await pricesOf(session.repository.store);
          const estimate = await estimateBackup(
            requestFor(session, () => undefined),
            cli.run.signal,
          );
          const cost = prices === undefined ? null : costOf(estimate, prices);
          cli.output.result({ ...estimate, cost }, () => text(estimate, cost));
        });
      }),
    );
}

/** Money, in the currency of the price sheet; null where the likely is not known. */
interface Cost {
  readonly prices: Prices;
  readonly requests: Expected;
  /** More each month, as long as it is kept. */
  readonly monthly: Expected;
}

function costOf({ requests, upload }: Estimate, prices: Prices): Cost {
  return {
    prices,
    requests: {
      max: requestCost(requests.max, prices),
      likely: requests.likely === null ? null : requestCost(requests.likely, prices),
    },
    monthly: {
      max: storageCost(upload.max, prices),
      likely: upload.likely === null ? null : storageCost(upload.likely, prices),
    },
  };
}

function text({ disks, read, upload, requests }: Estimate, cost: Cost | null): string {
  const rows = disks.map((disk) => [
    disk.name,
    disk.kind,
    expected(disk.read, formatSize),
    expected(disk.upload, formatSize),
    disk.reason,
  ]);
  const sent = requests.likely ?? requests.max;
  const bases = [...new Set(disks.flatMap(({ basis }) => basis ?? []))];
  const basis =
    bases.length === 0
      ? "No earlier backup of the kind tells what is likely"
      : `Likely by ${bases.join(", ")}`;
  return [
    table(["DISK", "KIND", "READS", "UPLOADS", "WHY"], rows),
    `Reads ${expected(read, formatSize)}, uploads ${expected(upload, formatSize)}`,
    `Sends about ${countsOf(sent)}${cost === null ? "" : `; ${expected(cost.requests, money(cost))}`}`,
    ...(cost === null
      ? []
      : [
          `What is new costs ${expected(cost.monthly, money(cost))} a month (${cost.prices.name}, ${cost.prices.asOf})`,
        ]),
    basis,
  ].join("\n");
}

const money =
  ({ prices }: Cost) =>
  (amount: number): string =>
    formatMoney(amount, prices);

function expected({ max, likely }: Expected, format: (amount: number) => string): string {
  if (likely === null || likely === max) return `at most ${format(max)}`;
  return `about ${format(likely)}, at most ${format(max)}`;
}

function countsOf(requests: RequestCounts): string {
  return Object.entries(requests)
    .map(([operation, count]) => `${operation} ${count}`)
    .join(", ");
}
