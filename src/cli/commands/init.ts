import { hostname } from "node:os";
import { Command } from "commander";
import { formatSize, parseSize } from "../../bytes/size.ts";
import { AppError } from "../../errors.ts";
import { createRepository, type FirstKey } from "../../repository/config.ts";
import { passwordSettings, repositorySettings } from "../../settings.ts";
import { openNewStore } from "../../store/open.ts";
import { action } from "../action.ts";
import { firstPassword } from "../password.ts";
import type { RepositoryFlags } from "../session.ts";

interface Flags extends RepositoryFlags {
  readonly chunkSize?: string;
  readonly encrypt?: boolean;
}

export function initCommand(): Command {
  return new Command("init")
    .summary("create a repository")
    .description("Creates a repository under an empty prefix of a bucket, or in an empty or new directory.")
    .option(
      "--chunk-size <SIZE>",
      "unit of deduplication: a power of two from 64KiB to 4MiB (default 256KiB)",
    )
    .option("--encrypt", "encrypt everything with a password (BLOCKHAUL_PASSWORD_FILE and its kin, or asked)")
    .addHelpText(
      "after",
      `
Without the password nobody can read an encrypted repository, ever: keep it where a fire does not reach both.

Examples:
  blockhaul init -r /backup/vms
  blockhaul init -r s3://my-bucket/vms --encrypt
  blockhaul init -r s3://my-bucket/vms
  blockhaul init -r 's3://my-bucket/vms?endpoint=https://minio.example:9000&path-style=true'`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        if (flags.encrypt !== true) refusePassword();
        const store = await openNewStore(repositorySettings(flags, process.env).location);
        try {
          const sizes = flags.chunkSize === undefined ? {} : { chunkSize: parseSize(flags.chunkSize) };
          const first = flags.encrypt === true ? await firstKey(cli.run.signal) : undefined;
          const creating = createRepository(store, sizes, cli.run.signal, first);
          const { config } = await creating.finally(() => first?.password.fill(0));
          const { repository, chunkSize, encrypted } = config;
          cli.output.result({ repository, location: store.location, chunkSize, encrypted }, () => {
            const kind = `chunks of ${formatSize(chunkSize)}, ${encrypted ? "encrypted" : "not encrypted"}`;
            return `Created repository ${repository} in ${store.location} (${kind})`;
          });
        } finally {
          store.close();
        }
      }),
    );
}

async function firstKey(signal: AbortSignal): Promise<FirstKey> {
  return { password: await firstPassword(signal), notes: { label: "init", host: hostname() } };
}

/** Who has a password set wants encryption; and no later command would open a plain repository with it (R14). */
function refusePassword(): void {
  const settings = passwordSettings(process.env);
  if (settings === undefined) return;
  const message = `${settings.variable} is set: give --encrypt, or unset it for a repository that is not encrypted`;
  throw new AppError("usage", "E_ENCRYPT", message);
}
