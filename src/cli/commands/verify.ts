import { Command } from "commander";
import { formatSize } from "../../bytes/size.ts";
import { AppError } from "../../errors.ts";
import { loadGenerations } from "../../repository/generations.ts";
import { resolveGeneration } from "../../repository/resolve-generation.ts";
import { verify, type Problem, type VerifyReport } from "../../upkeep/verify.ts";
import { action } from "../action.ts";
import { Progress } from "../progress.ts";
import { withSession, type RepositoryFlags } from "../session.ts";

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
          const report = await verify(wanted, damaged, percent, session, cli.run, (done, total) =>
            progress.update({ label: "packs", done, total, note: "" }),
          ).finally(() => progress.end());
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
  const head = `${report.generations} generations, ${report.packs} packs, ${report.chunks} chunks in use`;
  const read =
    report.chunksRead > 0 ? `; ${report.chunksRead} chunks read (${formatSize(report.bytesRead)})` : "";
  const lines = report.problems.map(
    (problem) => `${problem.message} (needed by ${problem.generations.join(", ")})`,
  );
  return [head + read, ...(lines.length === 0 ? ["No problems found"] : lines)].join("\n");
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
