import { execFile } from "node:child_process";
import { resolve } from "node:path";
import { Command } from "commander";
import { AppError, messageOf } from "../../errors.ts";
import { imageFormat } from "../../image/formats.ts";
import { inspectImage } from "../../image/inspect.ts";
import { describeExport } from "../../nbd/exports.ts";
import { isNbdUri, parseNbdUri } from "../../nbd/uri.ts";
import { checkUpDomain } from "../../libvirt/checkup.ts";
import { checkUpVm } from "../../qemu/vm-checkup.ts";
import { checkClock } from "../../repository/clock.ts";
import type { Repository } from "../../repository/config.ts";
import type { Password } from "../../repository/key-slots.ts";
import {
  imagePath,
  isImageSource,
  isLibvirtSource,
  isQmpSource,
  libvirtDomain,
  qmpPath,
} from "../../settings.ts";
import { action, type CliContext } from "../action.ts";
import { table } from "../output.ts";
import { repositoryPassword } from "../password.ts";
import { addScratchFlag, scratchDirectory, type ScratchFlag } from "../qemu-flags.ts";
import { withRepository, type RepositoryFlags } from "../session.ts";

interface Flags extends RepositoryFlags, ScratchFlag {
  readonly fix?: boolean;
  readonly guestAgent?: string;
  readonly connect?: string;
}

interface Finding {
  readonly check: string;
  readonly status: "ok" | "fixed" | "warning" | "failed";
  readonly detail: string;
  /** Of what failed. */
  readonly error?: unknown;
}

export function doctorCommand(): Command {
  const command = new Command("doctor")
    .summary("check this machine, the repository and a source; clear what dead backups left in a VM")
    .description(
      `Looks at what a backup needs, and says what is wrong and what to do about it. Changes nothing without --fix.

With --fix what dead backups left in a VM goes, as it does when the next one begins: their exports, jobs, scratch and
temporary bitmaps; a VM that stands because of them runs on, and a guest that one of them left frozen is thawed. Nothing of
others is touched, and nothing while a backup is running.`,
    )
    .argument("[source]", "a source to look at as well: libvirt:DOMAIN, qmp:PATH, image:PATH, or an NBD URI")
    .option("--fix", "qmp, libvirt: clear what dead backups left")
    .option("--connect <URI>", "libvirt: the connection, as qemu:///system")
    .option("--guest-agent <PATH>", "qmp: socket of the guest agent");
  return addScratchFlag(command)
    .addHelpText(
      "after",
      `
Examples:
  blockhaul doctor -r s3://my-bucket/vms nbd://127.0.0.1/vda
  blockhaul doctor libvirt:web --fix
  blockhaul doctor qmp:/run/web/qmp.sock --guest-agent /run/web/qga.sock --fix`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const source = command.args[0];
        checkFlags(source, flags);
        const password = repositoryPassword(); // before any program is started, which would inherit it
        const findings: Finding[] = [
          { check: "node", status: "ok", detail: process.versions.node },
          await program(
            "qemu-nbd",
            "restores to qcow2, and images as sources, need it (apt install qemu-utils)",
          ),
        ];
        if (flags.repository !== undefined || process.env["BLOCKHAUL_REPOSITORY"] !== undefined) {
          findings.push(await examine("repository", cli, () => lookAtRepository(flags, password, cli)));
        }
        if (source !== undefined && isLibvirtSource(source))
          findings.push(...(await lookAtDomain(source, flags, cli)));
        else if (source !== undefined && isQmpSource(source))
          findings.push(...(await lookAtVm(source, flags, cli)));
        else if (source !== undefined && isImageSource(source))
          findings.push(await examine("image", cli, () => lookAtImage(source, cli.run.signal)));
        else if (source !== undefined) {
          findings.push(await examine("export", cli, () => lookAtExport(source, cli.run.signal)));
        }
        report(findings, cli);
      }),
    );
}

/** @throws AppError E_FLAG (usage). */
function checkFlags(source: string | undefined, flags: Flags): void {
  const ofQemu = source !== undefined && isQmpSource(source);
  const ofLibvirt = source !== undefined && isLibvirtSource(source);
  const wrong = (flag: string, hint: string): AppError =>
    new AppError("usage", "E_FLAG", `${flag} is for a running QEMU: give ${hint}`);
  if (flags.fix === true && !ofQemu && !ofLibvirt) {
    throw wrong("--fix", "its monitor as qmp:PATH, or libvirt:DOMAIN");
  }
  if (flags.guestAgent !== undefined && !ofQemu) throw wrong("--guest-agent", "its monitor as qmp:PATH");
  if (flags.connect !== undefined && !ofLibvirt) throw wrong("--connect", "its domain as libvirt:DOMAIN");
}

/** @throws the error of the first finding that failed, when all are shown. */
function report(findings: readonly Finding[], { output }: CliContext): void {
  const shown = findings.map(({ check, status, detail }) => ({ check, status, detail }));
  output.result({ findings: shown }, () =>
    table(
      ["CHECK", "STATUS", "DETAIL"],
      shown.map(({ check, status, detail }) => [check, status, detail]),
    ),
  );
  output.countWarnings(findings.filter(({ status }) => status === "warning").length);
  const worst = findings.find(({ status }) => status === "failed");
  if (worst !== undefined) throw worst.error;
}

async function examine(check: string, cli: CliContext, look: () => Promise<string>): Promise<Finding> {
  try {
    return { check, status: "ok", detail: await look() };
  } catch (error) {
    cli.run.signal.throwIfAborted();
    return { check, status: "failed", detail: messageOf(error), error };
  }
}

async function lookAtDomain(source: string, flags: Flags, cli: CliContext): Promise<Finding[]> {
  const { connect, fix = false } = flags;
  const scratchDir = scratchDirectory(flags);
  const domain = { domain: libvirtDomain(source), uri: connect, scratchDir, fix };
  return await checkUpDomain(domain, cli.run.signal);
}

async function lookAtVm(source: string, flags: Flags, cli: CliContext): Promise<Finding[]> {
  const { guestAgent, fix = false } = flags;
  const vm = { qmp: qmpPath(source), agent: guestAgent, scratchDir: scratchDirectory(flags), fix };
  return [
    await program("qemu-img", "backups of a running QEMU need it (apt install qemu-utils)"),
    await program("fallocate", "without it no space is set aside for the scratch (apt install util-linux)"),
    ...(await checkUpVm(vm, cli.run.signal)),
  ];
}

async function lookAtRepository(
  flags: RepositoryFlags,
  password: Password,
  cli: CliContext,
): Promise<string> {
  const look = async ({ store, config }: Repository): Promise<string> => {
    const storeNow = await store.now(cli.run.signal);
    const offsetMs = Date.now() - storeNow.getTime();
    checkClock(storeNow, new Date());
    const sealed = config.encrypted ? "encrypted" : "not encrypted";
    return `${config.repository} in ${store.location}, format ${config.format}, ${sealed}, clocks ${Math.abs(offsetMs)} ms apart`;
  };
  return await withRepository(flags, cli, look, password);
}

async function lookAtImage(source: string, signal: AbortSignal): Promise<string> {
  const path = resolve(imagePath(source));
  const image = await inspectImage(path, imageFormat(path, undefined), signal);
  const keeps = image.canPersist ? `${image.bitmaps.length} dirty bitmaps` : "keeps no dirty bitmaps";
  return `${image.size} bytes, ${image.format}, ${image.below.length} images below, ${keeps}; no VM runs on it`;
}

async function lookAtExport(source: string, signal: AbortSignal): Promise<string> {
  if (!isNbdUri(source)) {
    throw new AppError(
      "usage",
      "E_SOURCE",
      `Not an NBD URI, nor qmp:PATH of a QEMU monitor, nor image:PATH: "${source}"`,
    );
  }
  const found = await describeExport(parseNbdUri(source), signal);
  const features = [
    found.readOnly ? "read-only" : "writable",
    found.structuredReplies ? "structured replies" : "simple replies",
    ...(found.extendedHeaders ? ["extended headers"] : []),
    ...(found.multiConn ? ["multi-conn"] : []),
    ...(found.tls ? ["TLS"] : []),
    `contexts: ${found.contexts.join(", ") || "none"}`,
  ];
  return `${found.size} bytes, ${features.join(", ")}`;
}

async function program(name: string, need: string): Promise<Finding> {
  return await new Promise((resolve) => {
    execFile(name, ["--version"], (error, stdout) => {
      const missing: Finding = { check: name, status: "warning", detail: `not found; ${need}` };
      resolve(error === null ? { check: name, status: "ok", detail: stdout.split("\n")[0]! } : missing);
    });
  });
}
