import { Command } from "commander";
import { AppError } from "../../errors.ts";
import { resolveGeneration } from "../../repository/resolve-generation.ts";
import { verify, type VerifyReport } from "../../upkeep/verify.ts";
import { throwIfAny, verifyAll } from "../../upkeep/verify-all.ts";
import { scrub, type Part } from "../../upkeep/scrub.ts";
import { action, type CliContext } from "../action.ts";
import { Progress } from "../progress.ts";
import { withSession, withStore, type RepositoryFlags } from "../session.ts";
import { describeScrub, describeVerify, parsePercent } from "../verify-text.ts";

interface Flags extends RepositoryFlags {
  readonly readData?: string | true;
  readonly keyless?: boolean;
  readonly part?: string;
}

export function verifyCommand(): Command {
  return new Command("verify")
    .summary("check that generations can be restored")
    .description(
      `Checks the chain of hashes: manifests, layers, directories of packs, and that every address leads to a chunk.
With --read-data the chunks are read, opened and hashed too; with --read-data=N% in those packs whose turn it is: in 100/N runs each is.`,
    )
    .argument("[generations...]", "which ones (default: all)")
    .option("--read-data [PERCENT]", "read chunks as well: all, or those of this part of the packs")
    .option("--keyless", "without a password: check stored bytes by their checksums, packs above all")
    .option("--part <K/N>", "with --keyless: only the K-th of N parts of the packs")
    .addHelpText(
      "after",
      `
Examples:
  blockhaul verify -r s3://my-bucket/vms
  blockhaul verify -r s3://my-bucket/vms web@latest --read-data
  blockhaul verify -r s3://my-bucket/vms --read-data=10%
  blockhaul verify -r s3://my-bucket/vms --keyless --part 3/10`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        if (flags.keyless === true) await keyless(flags, command.args, cli);
        else await full(flags, command.args, cli);
      }),
    );
}

async function full(flags: Flags, names: readonly string[], cli: CliContext): Promise<void> {
  const percent = parsePercent(flags.readData);
  if (flags.part !== undefined) throw new AppError("usage", "E_PART", "--part goes with --keyless only");
  await withSession(flags, cli, async (session) => {
    const { signal } = cli.run;
    const progress = new Progress(cli.output);
    const options = {
      readPercent: percent,
      warn: (message: string): void => cli.output.warn(message),
      progress: (done: number, total: number): void =>
        progress.update({ label: "packs", done, total, note: "" }),
    };
    const some = async (): Promise<VerifyReport> => {
      const { repository } = session;
      const manifests = await Promise.all(names.map((name) => resolveGeneration(repository, name, signal)));
      const request = { ...options, manifests, found: [], complete: false, record: true };
      return await verify(request, session, cli.run);
    };
    const report = await (names.length > 0 ? some() : verifyAll(options, session, cli.run)).finally(() =>
      progress.end(),
    );
    cli.output.result(report, () => describeVerify(report));
    throwIfAny(report, session.repository.store.location);
  });
}

async function keyless(flags: Flags, names: readonly string[], cli: CliContext): Promise<void> {
  if (names.length > 0 || flags.readData !== undefined) {
    const message =
      "--keyless reads packs, whoever needs them: leave out generations and --read-data (--part K/N is there)";
    throw new AppError("usage", "E_KEYLESS", message);
  }
  const part = parsePart(flags.part);
  await withStore(flags, cli, async (store) => {
    const progress = new Progress(cli.output);
    const request = {
      part,
      progress: (done: number, total: number): void =>
        progress.update({ label: "read", done, total, note: "" }),
    };
    const report = await scrub(store, request, cli.run).finally(() => progress.end());
    cli.output.result(report, () => describeScrub(report));
    throwIfAny(report, store.location);
  });
}

/** "3/10". @throws AppError E_PART (usage). */
function parsePart(flag: string | undefined): Part {
  if (flag === undefined) return { number: 1, of: 1 };
  const [, number, of] = /^(\d{1,4})\/(\d{1,4})$/.exec(flag) ?? [];
  const part = { number: Number(number), of: Number(of) };
  if (part.number >= 1 && part.number <= part.of) return part;
  throw new AppError("usage", "E_PART", `Not a part: "${flag}"; for example --part 3/10`);
}
