import { Command, CommanderError } from "commander";
import { agentCommand } from "./commands/agent.ts";
import { backupCommand } from "./commands/backup.ts";
import { bitmapCommand } from "./commands/bitmap.ts";
import { completionCommand } from "./commands/completion.ts";
import { demoCommand } from "./commands/demo.ts";
import { diffCommand } from "./commands/diff.ts";
import { doctorCommand } from "./commands/doctor.ts";
import { drillCommand } from "./commands/drill.ts";
import { exportCommand } from "./commands/export.ts";
import { filesCommand } from "./commands/files.ts";
import { forgetCommand } from "./commands/forget.ts";
import { holdCommand, releaseCommand } from "./commands/hold.ts";
import { initCommand } from "./commands/init.ts";
import { keyCommand } from "./commands/key.ts";
import { listCommand } from "./commands/list.ts";
import { mountCommand } from "./commands/mount.ts";
import { planCommand } from "./commands/plan.ts";
import { pruneCommand } from "./commands/prune.ts";
import { repairCommand } from "./commands/repair.ts";
import { runCommand } from "./commands/run.ts";
import { restoreCommand } from "./commands/restore.ts";
import { restoreGenerationCommand } from "./commands/restore-generation.ts";
import { serveCommand } from "./commands/serve.ts";
import { showCommand } from "./commands/show.ts";
import { statsCommand } from "./commands/stats.ts";
import { verifyCommand } from "./commands/verify.ts";
import { EXIT_CODE } from "./exit-codes.ts";
import { packageVersion } from "./process.ts";

const HINT = "(blockhaul COMMAND --help shows examples)";

/** The whole command line, for `main` and for the tests that hold README.md to it. */
export function buildProgram(): Command {
  const program = new Command("blockhaul")
    .description("Backs up the changed blocks of QEMU disks over NBD straight into S3-compatible storage.")
    .version(packageVersion())
    .option("-r, --repository <REPO>", "s3://BUCKET/PREFIX or a directory (or BLOCKHAUL_REPOSITORY)")
    .option("--cache-dir <DIR>", "where the dedup index is cached (or BLOCKHAUL_CACHE_DIR)")
    .option("--limit-upload <RATE>", "bytes a second that go to the storage, at most: 20MiB")
    .option("--limit-download <RATE>", "bytes a second that come from it, at most")
    .option("--max-requests <N>", "end the run when it has sent so many requests to the storage")
    .option("--json", "print one JSON document to stdout, JSON lines to stderr")
    .option("-q, --quiet", "no progress, no remarks")
    .option("--strict", "exit with 16 when there were warnings")
    .addHelpText(
      "after",
      `
A first backup:
  blockhaul init -r /backup/vms
  qemu-nbd --read-only --fork --persistent --socket=/tmp/web.sock --export-name=web web.qcow2
  blockhaul backup -r /backup/vms 'nbd+unix:///web?socket=/tmp/web.sock'
  blockhaul list -r /backup/vms
  blockhaul restore -r /backup/vms web --to restored.raw

Exit codes: 0 done, 1 unexpected, 2 usage, 10 not found, 11 locked by another run, 12 credentials,
13 repository damaged, 14 source or protocol error, 15 storage unavailable or full (or --max-requests spent),
16 warnings with --strict, 130 interrupted.`,
    )
    .showHelpAfterError(HINT);
  for (const command of [
    initCommand(),
    backupCommand(),
    planCommand(),
    runCommand(),
    agentCommand(),
    listCommand(),
    showCommand(),
    restoreCommand(),
    exportCommand(),
    serveCommand(),
    drillCommand(),
    filesCommand(),
    mountCommand(),
    verifyCommand(),
    repairCommand(),
    statsCommand(),
    diffCommand(),
    holdCommand(),
    releaseCommand(),
    forgetCommand(),
    restoreGenerationCommand(),
    pruneCommand(),
    bitmapCommand(),
    keyCommand(),
    doctorCommand(),
    demoCommand(),
    completionCommand(),
  ]) {
    program.addCommand(configured(command));
  }
  return program;
}

/** Also the commands below it: commander hands these settings down only to those made by itself. */
function configured(command: Command): Command {
  for (const below of command.commands) configured(below);
  return command.exitOverride().showHelpAfterError(HINT).configureHelp({ showGlobalOptions: true });
}

/** Runs the command line and sets the exit code; never throws for what a user can cause. */
export async function main(argv: readonly string[] = process.argv): Promise<void> {
  const program = buildProgram().exitOverride();
  try {
    await program.parseAsync(argv);
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    process.exitCode = error.exitCode === 0 ? 0 : EXIT_CODE.usage; // commander has said what was wrong
  }
}
