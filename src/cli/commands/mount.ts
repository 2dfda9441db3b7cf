import { realpath } from "node:fs/promises";
import { resolve } from "node:path";
import { Command } from "commander";
import { mountUntilOver, type Shown } from "../../files/mount-generation.ts";
import { action } from "../action.ts";
import { table } from "../output.ts";
import { addThrowawayFlags, withServedGeneration, type ThrowawayFlags } from "../throwaway.ts";

interface Flags extends ThrowawayFlags {
  readonly raw?: boolean;
}

export function mountCommand(): Command {
  const command = new Command("mount")
    .summary("show the files of a generation in a folder")
    .description(
      `Mounts the file systems of a generation read-only below DIR, each in a folder of its volume's name (vda, or
vda:1 for a partition), until it is asked to end by SIGINT or SIGTERM, or all of them are unmounted. Only what is read is
fetched. This takes root and nbdfuse; with --raw, which shows disks and partitions as files, nbdfuse alone.`,
    )
    .argument(
      "<generation>",
      "an id, a unique prefix of one, latest, NAME, NAME@latest, or NAME@2026-11-22T03:00Z",
    )
    .argument("<dir>", "an empty folder")
    .option("--raw", "show disks and partitions, each as a file called disk, instead of what is in them");
  return addThrowawayFlags(command)
    .addHelpText(
      "after",
      `
Examples:
  blockhaul mount -r s3://my-bucket/vms web /mnt/web
  blockhaul mount -r /backup/vms db@2026-11-22T03:00Z /mnt/db --disk vdb --raw`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const [name, dir] = [command.args[0]!, resolve(command.args[1]!)];
        // as /proc/self/mounts has it; what is not there is told later
        const folder = await realpath(dir).catch(() => dir);
        await withServedGeneration(name, flags, cli, async (served, { source, generation }, scratch) => {
          const ready = (shown: readonly Shown[]): void => {
            const mounts = shown.map(({ volume, kind, path }) => ({ volume, kind: kind ?? null, path }));
            cli.output.result({ generation, source, pid: process.pid, mounts }, () =>
              table(
                ["VOLUME", "KIND", "PATH"],
                mounts.map(({ volume, kind, path }) => [volume, kind ?? "-", path]),
              ),
            );
            cli.output.info(`Ctrl-C ends it, or umount`);
          };
          const wish = { folder, raw: flags.raw === true, scratch };
          await mountUntilOver(
            served,
            wish,
            ready,
            ({ name, kind }, why) => cli.output.info(`Not shown: ${name} (${kind ?? "unknown"}): ${why}`),
            cli.run.signal,
          );
        });
      }),
    );
}
