import { Command } from "commander";
import { formatSize } from "../../bytes/size.ts";
import { AppError } from "../../errors.ts";
import { loadGenerations } from "../../repository/generations.ts";
import { resolveGeneration } from "../../repository/resolve-generation.ts";
import { verify, type Problem, type VerifyReport } from "../../upkeep/verify.ts";
import { action } from "../action.ts";
import { Progress } from "../progress.ts";
import { withSession, type RepositoryFlags } from "../session.ts";
import { lossLines, problemLines } from "../verify-text.ts";

interface Flags extends RepositoryFlags {
  readonly readData?: string | true;
}

export function verifyCommand(): Command {
  return new Command("verify")
    .summary("check that generations can be restored")
    .description(
      `Checks the chain of hashes: manifests, layers, directories of packs, and that every address leads to a chunk.
With --read-data the chunks are read, opened and hashed too; with --read-data=N% only in a random part of the packs.`,
    )
    .argument("[generations...]", "which ones (default: all)")
    .option("--read-data [PERCENT]", "read chunks as well: all, or this part of the packs")
    .addHelpText(
      "after",
      `
Examples:
  blockhaul verify -r s3://my-bucket/vms
  blockhaul verify -r s3://my-bucket/vms web@latest --read-data
  blockhaul verify -r s3://my-bucket/vms --read-data=10%`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const percent = parsePercent(flags.readData);
        await withSession(flags, cli, async (session) => {
          const { signal } = cli.run;
          const damaged: Problem[] = [];
          const wanted =
            command.args.length === 0
              ? await loadGenerations(session.repository, undefined, signal, (error, { generation }) =>
                  damaged.push({ message: error.message, code: error.code, generations: [generation] }),
                )
              : await Promise.all(
                  command.args.map((name) => resolveGeneration(session.repository, name, signal)),
                );
          const progress = new Progress(cli.output);
          const request = {
            manifests: wanted,
            found: damaged,
            readPercent: percent,
            warn: (message: string): void => cli.output.warn(message),
            progress: (done: number, total: number): void =>
              progress.update({ label: "packs", done, total, note: "" }),
          };
          const report = await verify(request, session, cli.run).finally(() => progress.end());
          cli.output.result(report, () => describe(report));
          if (report.problems.length > 0) throw damage(report, session.repository.store.location);
        });
      }),
    );
}

/** @throws AppError E_PERCENT (usage). */
function parsePercent(flag: string | true | undefined): number {
  if (flag === undefined) return 0;
  if (flag === true) return 100;
  const percent = Number(flag.replace(/%$/, ""));
  if (percent > 0 && percent <= 100) return percent;
  throw new AppError("usage", "E_PERCENT", `Not a percentage: "${flag}"; for example --read-data=10%`);
}

function describe(report: VerifyReport): string {
  const { problems, losses } = report;
  const head = `${report.generations} generations, ${report.packs} packs, ${report.chunks} chunks in use`;
  const read =
    report.chunksRead > 0 ? `; ${report.chunksRead} chunks read (${formatSize(report.bytesRead)})` : "";
  const lines = [
    head + read,
    ...problemLines(problems, report.problemsLeftOut),
    ...lossLines(losses),
    ...remarks(report),
  ];
  return (problems.length === 0 ? [...lines, "No problems found"] : lines).join("\n");
}

/** What it means, and what can be done. */
function remarks(report: VerifyReport): string[] {
  const lines: string[] = [];
  if (report.slotsRecorded > 0) {
    lines.push(
      `${report.slotsRecorded} bad chunks were recorded: no backup takes them for duplicates any more`,
    );
  }
  if (report.losses.length > 0) lines.push(...report.advice);
  if (report.slotsHealed > 0) {
    lines.push(
      `${report.slotsHealed} chunks are recorded as bad, but were read well: blockhaul repair takes those records back`,
    );
  }
  if (report.transient > 0)
    lines.push(`${report.transient} checks failed once and went well when they were made again`);
  return lines;
}

function damage(report: VerifyReport, location: string): AppError {
  const count = report.problems.length;
  return new AppError(
    "corrupt",
    "E_VERIFY",
    `${location}: ${count} ${count === 1 ? "problem" : "problems"} found`,
    { count },
  );
}
