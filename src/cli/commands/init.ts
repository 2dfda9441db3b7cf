import { Command } from "commander";
import { formatSize, parseSize } from "../../bytes/size.ts";
import { createRepository } from "../../repository/config.ts";
import { repositorySettings } from "../../settings.ts";
import { openNewStore } from "../../store/open.ts";
import { action } from "../action.ts";
import type { RepositoryFlags } from "../session.ts";

interface Flags extends RepositoryFlags {
  readonly chunkSize?: string;
}

export function initCommand(): Command {
  return new Command("init")
    .summary("create a repository")
    .description("Creates a repository under an empty prefix of a bucket, or in an empty or new directory.")
    .option(
      "--chunk-size <SIZE>",
      "unit of deduplication: a power of two from 64KiB to 4MiB (default 256KiB)",
    )
    .addHelpText(
      "after",
      `
Examples:
  blockhaul init -r /backup/vms
  blockhaul init -r s3://my-bucket/vms
  blockhaul init -r 's3://my-bucket/vms?endpoint=https://minio.example:9000&path-style=true'`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const store = await openNewStore(repositorySettings(flags, process.env).location);
        try {
          const sizes = flags.chunkSize === undefined ? {} : { chunkSize: parseSize(flags.chunkSize) };
          const { config } = await createRepository(store, sizes, cli.run.signal);
          cli.output.result(
            { repository: config.repository, location: store.location, chunkSize: config.chunkSize },
            () =>
              `Created repository ${config.repository} in ${store.location} (chunks of ${formatSize(config.chunkSize)})`,
          );
        } finally {
          store.close();
        }
      }),
    );
}
