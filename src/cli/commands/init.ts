import { hostname } from "node:os";
import { Command } from "commander";
import { formatSize, parseSize } from "../../bytes/size.ts";
import { AppError } from "../../errors.ts";
import { createRepository, type FirstKey } from "../../repository/config.ts";
import { LOCK_DAYS_MAX, objectLockSchema, type ObjectLock } from "../../repository/object-lock.ts";
import { passwordSettings, repositorySettings } from "../../settings.ts";
import { openNewStore } from "../../store/open.ts";
import { action } from "../action.ts";
import { firstPassword } from "../password.ts";
import type { RepositoryFlags } from "../session.ts";

interface Flags extends RepositoryFlags {
  readonly chunkSize?: string;
  readonly encrypt?: boolean;
  readonly objectLock?: string;
  readonly retain?: string;
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
    .option(
      "--object-lock <MODE>",
      "lock what is written against deletion: governance or compliance (S3 Object Lock)",
    )
    .option("--retain <TIME>", "for how long, in whole days: 30d")
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
          const objectLock = lockOf(flags);
          const wishes = {
            ...(flags.chunkSize !== undefined && { chunkSize: parseSize(flags.chunkSize) }),
            ...(objectLock !== undefined && { objectLock }),
          };
          const first = flags.encrypt === true ? await firstKey(cli.run.signal) : undefined;
          const creating = createRepository(store, wishes, cli.run.signal, first);
          const { config } = await creating.finally(() => first?.password.fill(0));
          const { repository, chunkSize, encrypted } = config;
          const document = { repository, location: store.location, chunkSize, encrypted };
          cli.output.result({ ...document, objectLock: objectLock ?? null }, () => {
            const locked = objectLock && `, locked for ${objectLock.days} days (${objectLock.mode})`;
            const kind = `chunks of ${formatSize(chunkSize)}, ${encrypted ? "encrypted" : "not encrypted"}${locked ?? ""}`;
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

/** @throws AppError E_FLAG (usage). */
function lockOf({ objectLock: mode, retain }: Flags): ObjectLock | undefined {
  if (mode === undefined && retain === undefined) return undefined;
  const days = /^([1-9][0-9]{0,3})d$/.exec(retain ?? "")?.[1];
  const checked = objectLockSchema.safeParse({ mode, days: Number(days) });
  if (checked.success) return checked.data;
  const message =
    `A lock needs both: --object-lock governance or compliance, and --retain in whole days, 1d to ${LOCK_DAYS_MAX}d; ` +
    "compliance can be ended by nobody before its time";
  throw new AppError("usage", "E_OBJECT_LOCK", message);
}

/** Who has a password set wants encryption; and no later command would open a plain repository with it (R14). */
function refusePassword(): void {
  const settings = passwordSettings(process.env);
  if (settings === undefined) return;
  const message = `${settings.variable} is set: give --encrypt, or unset it for a repository that is not encrypted`;
  throw new AppError("usage", "E_ENCRYPT", message);
}
