import { resolve } from "node:path";
import { Command, Option } from "commander";
import { formatSize, parseSize } from "../../bytes/size.ts";
import { bestAccelerator } from "../../drill/accelerator.ts";
import type { CheckedVolume } from "../../drill/check-files.ts";
import { runDrill, type DrillWish } from "../../drill/drill.ts";
import type { DrillResult } from "../../drill/findings.ts";
import { recordDrill } from "../../drill/record.ts";
import { AppError } from "../../errors.ts";
import type { DrillRecord } from "../../repository/drills.ts";
import { resolveGeneration } from "../../repository/resolve-generation.ts";
import { withStandingPin } from "../../serve/standing-pin.ts";
import { action, type CliContext } from "../action.ts";
import { drillDocument, proofText } from "../drill-text.ts";
import { packageVersion, thisProcess } from "../process.ts";
import { oneOf } from "../qemu-flags.ts";
import type { Session } from "../../session/session.ts";
import { withSession, type RepositoryFlags } from "../session.ts";
import { disksOf } from "./serve.ts";

interface Flags extends RepositoryFlags {
  readonly disk: readonly string[];
  readonly agent?: boolean;
  readonly console?: string;
  readonly script?: string;
  readonly boot: boolean;
  readonly timeout: string;
  readonly qemu: string;
  readonly accel: string;
  readonly memory: string;
  readonly cpus: string;
  readonly qemuArgument: readonly string[];
  readonly scratch: string;
  readonly cacheMemory: string;
}

const CPUS_MAX = 256;
const TIMEOUT_MAX_MS = 24 * 3_600_000;
const UNIT_MS: Readonly<Record<string, number>> = { s: 1000, m: 60_000, h: 3_600_000 };

export function drillCommand(): Command {
  return new Command("drill")
    .summary("prove that a generation can be used: boot it, and see")
    .description(
      `Boots a generation in QEMU, straight from the repository, without network, on an overlay that is thrown away; waits
until it is alive, and records what came of it. Passed means that all that was asked for was seen: that the guest agent
answers (unless something else is asked for), that the serial console said something, that a program of yours ended with 0.`,
    )
    .argument(
      "<generation>",
      "an id, a unique prefix of one, latest, NAME, NAME@latest, or NAME@2026-11-22T03:00Z",
    )
    .option("--disk <NAME>", "with this disk only; repeat for several", collect, [])
    .option("--agent", "wait for the guest agent's answer (the default without --console and --script)")
    .option("--console <REGEX>", "wait until the serial console says what matches")
    .option("--script <FILE>", "then run this program: exit code 0 passes")
    .option("--no-boot", "boot nothing; check the file systems from outside instead")
    .option("--timeout <TIME>", "how long all of it may take: 90s, 10m, 2h", "10m")
    .option("--qemu <PATH>", "QEMU", "qemu-system-x86_64")
    .addOption(
      new Option("--accel <HOW>", "what runs the guest: kvm, tcg (slow, everywhere), or auto").default(
        "auto",
      ),
    )
    .option("--memory <SIZE>", "of the guest", "1GiB")
    .option("--cpus <N>", "of the guest", "2")
    .option("--qemu-argument <ARG>", "one more argument for QEMU; repeat for several", collect, [])
    .option("--scratch <DIR>", "for what the guest writes; it is removed afterwards", "/var/tmp")
    .option("--cache-memory <SIZE>", "memory for chunks that were read", "256MiB")
    .addHelpText(
      "after",
      `
Examples:
  blockhaul drill -r s3://my-bucket/vms web
  blockhaul drill -r /backup/vms db@2026-11-22T03:00Z --console 'login:' --timeout 5m
  blockhaul drill -r /backup/vms web --agent --script ./is-it-well.sh --memory 4GiB
  blockhaul drill -r /backup/vms web --no-boot
  blockhaul drill -r /backup/vms web --qemu-argument -bios --qemu-argument /usr/share/ovmf/OVMF.fd`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const wish = await wishOf(flags);
        await withSession(flags, cli, (session) => drill(command.args[0]!, flags.disk, wish, session, cli));
      }),
    );
}

/** @throws the drill's failure, when it has been shown and recorded. */
async function drill(
  name: string,
  diskNames: readonly string[],
  wish: DrillWish,
  session: Session,
  cli: CliContext,
): Promise<void> {
  const { output, run } = cli;
  const { signal } = run;
  const manifest = await resolveGeneration(session.repository, name, signal);
  const disks = disksOf(manifest, diskNames);
  const who = { host: thisProcess().host, writer: `blockhaul ${packageVersion()}` };
  const pin = {
    ...who,
    purpose: "serve" as const,
    unpinned: (message: string) => output.info(message),
    warn: (message: string) => output.warn(message),
  };
  const startedAt = await session.repository.store.now(signal);
  const result = await withStandingPin(session.repository, manifest, pin, signal, () =>
    runDrill(session, manifest, disks, wish, signal),
  );
  const { record, unrecorded } = await recordDrill(
    session.repository,
    manifest,
    { ...who, startedAt, result },
    signal,
  );
  if (unrecorded !== undefined) output.warn(`The drill is not recorded: ${unrecorded.message}`);
  const volumes = result.volumes.map((volume) => ({ ...volume, kind: volume.kind ?? null }));
  const document = {
    ...drillDocument(record),
    recorded: unrecorded === undefined,
    volumes,
    console: result.console,
  };
  output.result(document, () => text(record, result));
  if (result.failure !== undefined) throw result.failure;
}

function text(record: DrillRecord, { failure, console, volumes }: DrillResult): string {
  const { generation, source, proofs, bytesFetched, bytesWritten, seconds } = record;
  const seen = proofs.map(proofText).join(", ");
  const cost = `${formatSize(bytesFetched)} fetched, ${formatSize(bytesWritten)} written`;
  const how = record.accelerator === null ? "" : ` with ${record.accelerator}`;
  const line = `Drill of ${generation} of ${source} ${record.outcome}${how} in ${seconds.toFixed(1)} s: ${seen}; ${cost}`;
  if (record.accelerator === null) return [line, ...volumes.map(volumeText)].join("\n");
  if (failure === undefined) return line;
  if (console === "") return `${line}\nThe console said nothing`;
  return `${line}\nThe console's last lines:\n${console.replaceAll(/^/gm, "  ")}`;
}

function volumeText({ volume, kind, outcome, detail }: CheckedVolume): string {
  return `  ${volume}: ${kind ?? "nothing that is known"}, ${outcome}: ${detail}`;
}

/** @throws AppError (usage) E_FLAG, E_SIZE. */
async function wishOf(flags: Flags): Promise<DrillWish> {
  const { script } = flags;
  const pattern = flags.console === undefined ? undefined : regularExpression(flags.console);
  const accel = oneOf("--accel", flags.accel, ["auto", "kvm", "tcg"]);
  const cpus = Number(flags.cpus);
  if (!Number.isInteger(cpus) || cpus < 1 || cpus > CPUS_MAX) {
    throw flagError("--cpus", `takes a number from 1 to ${CPUS_MAX}, not "${flags.cpus}"`);
  }
  const machine = {
    qemu: flags.qemu,
    accelerator: accel === "auto" ? await bestAccelerator() : accel,
    memory: parseSize(flags.memory),
    cpus,
    more: flags.qemuArgument,
  };
  const proofs = {
    agent: flags.agent ?? (pattern === undefined && script === undefined),
    console: pattern,
    script: script === undefined ? undefined : resolve(script),
  };
  if (!flags.boot && (flags.agent === true || pattern !== undefined || script !== undefined)) {
    throw flagError("--no-boot", "goes without --agent, --console and --script: nobody would answer");
  }
  return {
    boot: flags.boot ? { machine, proofs } : undefined,
    timeoutMs: timeoutMs(flags.timeout),
    scratch: resolve(flags.scratch),
    cacheBytes: parseSize(flags.cacheMemory),
    startedMs: 0, // of this process, which is what the user waits for
    environment: process.env,
  };
}

function regularExpression(source: string): RegExp {
  try {
    return new RegExp(source, "m");
  } catch (error) {
    throw flagError("--console", `is no regular expression: ${String(error)}`);
  }
}

function timeoutMs(value: string): number {
  const [, number, unit] = /^(\d{1,6})([smh])$/.exec(value) ?? [];
  const ms = Number(number) * (UNIT_MS[unit ?? ""] ?? Number.NaN);
  if (ms > 0 && ms <= TIMEOUT_MAX_MS) return ms;
  throw flagError("--timeout", `takes a time like 90s, 10m or 2h, up to 24h, not "${value}"`);
}

function flagError(flag: string, what: string): AppError {
  return new AppError("usage", "E_FLAG", `${flag} ${what}`);
}

function collect(value: string, previous: readonly string[]): readonly string[] {
  return [...previous, value];
}
