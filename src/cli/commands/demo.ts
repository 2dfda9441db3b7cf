import { Command } from "commander";
import { parseSize } from "../../bytes/size.ts";
import { action } from "../action.ts";
import { runDemo } from "../demo/run.ts";

export function demoCommand(): Command {
  return new Command("demo")
    .summary("show a backup, an incremental and a restore, on a disk made for it")
    .description(
      `Makes a disk image in a temporary folder, exports it over NBD, backs it up into a directory repository, changes
some blocks, backs up what changed, restores both generations and compares them byte for byte.`,
    )
    .option("--size <SIZE>", "of the disk", "512MiB")
    .option("--keep", "leave the folder for a look")
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<{ size: string; keep?: boolean }>();
        await runDemo({ size: parseSize(flags.size), keep: flags.keep === true }, cli);
      }),
    );
}
