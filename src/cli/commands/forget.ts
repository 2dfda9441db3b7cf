import { Command } from "commander";
import { AppError } from "../../errors.ts";
import type { Repository } from "../../repository/config.ts";
import { RUN_GRACE_MS, type PinLookup } from "../../repository/pins.ts";
import { Calendar } from "../../upkeep/calendar.ts";
import { forgetAll } from "../../upkeep/forget-all.ts";
import { planByName, planByPolicy, type Judged, type SourcePlan } from "../../upkeep/plan-forget.ts";
import { action, type CliContext } from "../action.ts";
import { table } from "../output.ts";
import { isGone } from "../process.ts";
import { addRetentionFlags, hasRules, retentionPolicy, type RetentionFlags } from "../retention-flags.ts";
import { withRepository, type RepositoryFlags } from "../session.ts";

interface Flags extends RepositoryFlags, RetentionFlags {
  readonly source: readonly string[];
  readonly dryRun?: boolean;
}

const PINS: PinLookup = { graceMs: RUN_GRACE_MS, isGone };

export function forgetCommand(): Command {
  const command = new Command("forget")
    .summary("forget generations that no rule keeps")
    .description(
      `Forgets the generations that no rule keeps, source by source, or those that are named.

What any rule keeps is kept; of a period (an hour, a day, ...) the newest. The newest generation of a source stays, and so do
those that are held or in use by a restore or a backup. Only manifests are deleted: the data they named stays stored
until a prune removes it, and restore-generation brings them back until then.`,
    )
    .argument("[generations...]", "these instead of a policy; the newest of a source only by its id")
    .option("--source <NAME>", "only this source; repeatable (default: each)", collect, []);
  return addRetentionFlags(command)
    .option("--dry-run", "show what would be kept and why; remove nothing")
    .addHelpText(
      "after",
      `
Examples:
  blockhaul forget -r s3://my-bucket/vms --keep-daily 14 --keep-weekly 8 --keep-monthly 12 --dry-run
  blockhaul forget -r s3://my-bucket/vms --source web --keep-last 3 --keep-within 1m --timezone Europe/Berlin
  blockhaul forget -r s3://my-bucket/vms web@2026-11-22T03:00Z`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const plan = planner(flags, command.args, cli);
        await withRepository(flags, cli, async (repository) => {
          const damaged: AppError[] = [];
          const planned = await plan(repository, (error) => {
            damaged.push(error);
            cli.output.warn(error.message);
          });
          const dryRun = flags.dryRun === true;
          const plans = dryRun ? planned : await forgetAll(repository, planned, PINS, cli.output, cli.run);
          const calendar = new Calendar(flags.timezone);
          cli.output.result(document(plans, dryRun), () => text(plans, dryRun, calendar));
          if (damaged[0] !== undefined) throw damaged[0]; // after the rest was done
        });
      }),
    );
}

const collect = (value: string, all: readonly string[]): string[] => [...all, value];

type Planner = (repository: Repository, onDamaged: (error: AppError) => void) => Promise<SourcePlan[]>;

/** Checks the flags, before a repository is opened. @throws AppError E_FORGET_WHAT (usage), those of `retentionPolicy`. */
function planner(flags: Flags, generations: readonly string[], cli: CliContext): Planner {
  const { signal } = cli.run;
  if (generations.length === 0) {
    const { policy, calendar } = retentionPolicy(flags);
    return (repository, onDamaged) =>
      planByPolicy(repository, flags.source, policy, calendar, PINS, signal, onDamaged);
  }
  if (!hasRules(flags) && flags.source.length === 0) {
    return (repository) => planByName(repository, generations, PINS, signal);
  }
  const message = "Give either generations to forget, or rules of what to keep (with --source), not both";
  throw new AppError("usage", "E_FORGET_WHAT", message);
}

function document(plans: readonly SourcePlan[], dryRun: boolean): object {
  const entry = ({ generation, frozenAt, reasons }: Judged): object => ({ generation, frozenAt, reasons });
  return {
    dryRun,
    sources: plans.map(({ source, keep, remove }) => ({
      source,
      keep: keep.map(entry),
      remove: remove.map(entry),
    })),
  };
}

function text(plans: readonly SourcePlan[], dryRun: boolean, calendar: Calendar): string {
  const rows = plans.flatMap(({ keep, remove }) =>
    [
      ...keep.map((one) => ({ one, what: "keep" })),
      ...remove.map((one) => ({ one, what: dryRun ? "would forget" : "forgotten" })),
    ].sort((a, b) => (a.one.generation < b.one.generation ? -1 : 1)),
  );
  const [kept, gone] = [plans.flatMap(({ keep }) => keep), plans.flatMap(({ remove }) => remove)];
  const count = `${gone.length} ${gone.length === 1 ? "generation" : "generations"}`;
  const rest = kept.length === 0 ? "" : `, ${dryRun ? "keep" : "kept"} ${kept.length}`;
  const summary = dryRun
    ? `Would forget ${count}${rest}; nothing was removed`
    : `Forgot ${count}${rest}; the data stays stored until a prune removes it`;
  if (rows.length === 0) return summary;
  return `${table(
    ["GENERATION", "SOURCE", "TAKEN", "", "WHY"],
    rows.map(({ one, what }) => [
      one.generation,
      one.source,
      calendar.text(new Date(one.frozenAt)),
      what,
      one.reasons.join(", "),
    ]),
  )}\n${summary}`;
}
