import { Command } from "commander";
import { loadGenerations } from "../../repository/generations.ts";
import { repair, type RepairAction } from "../../upkeep/repair.ts";
import type { Problem, VerifyReport } from "../../upkeep/verify.ts";
import { throwIfAny, unreadableManifest } from "../../upkeep/verify-all.ts";
import { action } from "../action.ts";
import { isGone, packageVersion, thisProcess } from "../process.ts";
import { Progress } from "../progress.ts";
import { withSession, type RepositoryFlags } from "../session.ts";
import { describeVerify, parsePercent } from "../verify-text.ts";

interface Flags extends RepositoryFlags {
  readonly dryRun?: boolean;
  readonly readData?: string | true;
}

export function repairCommand(): Command {
  return new Command("repair")
    .summary("make a damaged repository work again")
    .description(
      `Completes the index from the packs, removes records that cannot be read and that nobody needs, looks again at chunks
that were recorded as bad, and records those that are lost, so that backups store them anew. Then it verifies everything.

Manifests, layers and packs are never touched: what cannot be read of them is named, and stays where it is.`,
    )
    .option("--read-data [PERCENT]", "read chunks as well, as verify does")
    .option("--dry-run", "show what would be done; write nothing")
    .addHelpText(
      "after",
      "\nExamples:\n  blockhaul repair -r s3://my-bucket/vms --dry-run\n  blockhaul repair -r s3://my-bucket/vms --read-data",
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const readPercent = parsePercent(flags.readData);
        const dryRun = flags.dryRun === true;
        await withSession(flags, cli, async (session) => {
          const found: Problem[] = [];
          const manifests = await loadGenerations(
            session.repository,
            undefined,
            cli.run.signal,
            (error, { generation }) => found.push(unreadableManifest(error, generation)),
          );
          const progress = new Progress(cli.output);
          const actions: RepairAction[] = [];
          const request = {
            manifests,
            found,
            readPercent,
            dryRun,
            isGone,
            host: thisProcess().host,
            writer: `blockhaul ${packageVersion()}`,
            warn: (message: string): void => cli.output.warn(message),
            progress: (done: number, total: number): void =>
              progress.update({ label: "packs", done, total, note: "" }),
            act: (one: RepairAction): void => void actions.push(one),
          };
          const report = await repair(request, session, cli.run)
            .catch((error: unknown) => {
              for (const one of actions) cli.output.info(actionLine(one, dryRun)); // done, whatever came after
              throw error;
            })
            .finally(() => progress.end());
          cli.output.result({ dryRun, actions, ...report }, () => describe(actions, report, dryRun));
          throwIfAny(report, session.repository.store.location);
        });
      }),
    );
}

function describe(actions: readonly RepairAction[], report: VerifyReport, dryRun: boolean): string {
  const lines = actions.map((one) => actionLine(one, dryRun));
  if (lines.length === 0) lines.push("Nothing to repair");
  return [...lines, describeVerify(report)].join("\n");
}

const DONE: Readonly<Record<RepairAction["action"], string>> = {
  write: "wrote",
  remove: "removed",
  rewrite: "wrote anew",
  record: "recorded as damaged",
  kept: "kept",
};

const TO_DO: Readonly<Record<RepairAction["action"], string>> = {
  write: "would write",
  remove: "would remove",
  rewrite: "would write anew",
  record: "would record as damaged",
  kept: "would keep",
};

function actionLine({ action, object, why }: RepairAction, dryRun: boolean): string {
  return `${(dryRun ? TO_DO : DONE)[action]} ${object}: ${why}`;
}
