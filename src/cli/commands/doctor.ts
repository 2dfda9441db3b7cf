import { execFile } from "node:child_process";
import { Command } from "commander";
import { AppError, messageOf } from "../../errors.ts";
import { describeExport } from "../../nbd/exports.ts";
import { isNbdUri, parseNbdUri } from "../../nbd/uri.ts";
import { checkClock } from "../../repository/clock.ts";
import { action, type CliContext } from "../action.ts";
import { table } from "../output.ts";
import { withRepository, type RepositoryFlags } from "../session.ts";

interface Finding {
  readonly check: string;
  readonly status: "ok" | "warning" | "failed";
  readonly detail: string;
}

export function doctorCommand(): Command {
  return new Command("doctor")
    .summary("check this machine, the repository and an export")
    .description(
      "Looks at what a backup needs, changes nothing, and says what is wrong and what to do about it.",
    )
    .argument("[source]", "an NBD URI to look at as well")
    .addHelpText("after", "\nExample:\n  blockhaul doctor -r s3://my-bucket/vms nbd://127.0.0.1/vda")
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<RepositoryFlags>();
        const findings: Finding[] = [
          { check: "node", status: "ok", detail: process.versions.node },
          await program("qemu-nbd", "restores to qcow2 need it (apt install qemu-utils)"),
        ];
        let worst: Error | undefined;
        const examine = async (check: string, look: () => Promise<string>): Promise<void> => {
          try {
            findings.push({ check, status: "ok", detail: await look() });
          } catch (error) {
            cli.run.signal.throwIfAborted();
            worst ??= error as Error;
            findings.push({ check, status: "failed", detail: messageOf(error) });
          }
        };
        if (flags.repository !== undefined || process.env["BLOCKHAUL_REPOSITORY"] !== undefined) {
          await examine("repository", () => lookAtRepository(flags, cli));
        }
        const source = command.args[0];
        if (source !== undefined) await examine("export", () => lookAtExport(source, cli.run.signal));
        cli.output.result({ findings }, () =>
          table(
            ["CHECK", "STATUS", "DETAIL"],
            findings.map((finding) => [finding.check, finding.status, finding.detail]),
          ),
        );
        if (worst !== undefined) throw worst;
      }),
    );
}

async function lookAtRepository(flags: RepositoryFlags, cli: CliContext): Promise<string> {
  return await withRepository(flags, cli, async ({ store, config }) => {
    const storeNow = await store.now(cli.run.signal);
    const offsetMs = Date.now() - storeNow.getTime();
    checkClock(storeNow, new Date());
    return `${config.repository} in ${store.location}, format ${config.format}, clocks ${Math.abs(offsetMs)} ms apart`;
  });
}

async function lookAtExport(source: string, signal: AbortSignal): Promise<string> {
  if (!isNbdUri(source)) throw new AppError("usage", "E_SOURCE", `Not an NBD URI: "${source}"`);
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
