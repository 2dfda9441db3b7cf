import { resolve, join } from "node:path";
import { Command } from "commander";
import { formatSize } from "../../bytes/size.ts";
import { copyFiles, listFiles, type FileEntry } from "../../files/files.ts";
import { allVolumes, pickVolume, showFiles } from "../../files/opened-volumes.ts";
import type { StoredManifest } from "../../repository/manifest.ts";
import type { Throwaway, WritableDisk } from "../../serve/throwaway.ts";
import { action, type CliContext } from "../action.ts";
import { table } from "../output.ts";
import { addThrowawayFlags, withServedGeneration, type ThrowawayFlags } from "../throwaway.ts";

interface Flags extends ThrowawayFlags {
  readonly volume?: string;
}

const GENERATION = "an id, a unique prefix of one, latest, NAME, NAME@latest, or NAME@2026-11-22T03:00Z";

export function filesCommand(): Command {
  return new Command("files")
    .summary("look at files of a generation, and copy some out")
    .description(
      `Reads files straight from the repository: only what is read is fetched. This takes root and nbdfuse, as mount does.`,
    )
    .addHelpText("after", "\nExample:\n  blockhaul files ls -r /backup/vms web /etc")
    .addCommand(listSubcommand())
    .addCommand(copySubcommand());
}

function listSubcommand(): Command {
  const command = new Command("ls")
    .summary("list a folder, or the volumes")
    .description("Lists what is in a folder of a volume; without PATH, the volumes.")
    .argument("<generation>", GENERATION)
    .argument("[path]", "of the guest")
    .option("--volume <NAME>", "vda, or vda:1 for a partition; needed when several have files");
  return addThrowawayFlags(command)
    .addHelpText(
      "after",
      `
Examples:
  blockhaul files ls -r s3://my-bucket/vms web
  blockhaul files ls -r s3://my-bucket/vms web /var/log --volume vda:1`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const [name, path] = command.args;
        await withServedGeneration(name!, flags, cli, async (served, manifest, scratch) => {
          if (path === undefined) {
            await listVolumes(served, manifest, cli);
            return;
          }
          await withVolume(served, flags, scratch, cli, async (root, volume) => {
            const entries = await listFiles(root, path);
            const { generation, source } = manifest;
            cli.output.result({ generation, source, volume, path, entries }, () => entriesText(entries));
          });
        });
      }),
    );
}

function copySubcommand(): Command {
  const command = new Command("cp")
    .summary("copy a file or a folder out of a generation")
    .description(
      `Copies PATH to TARGET, a folder with all that is in it: with times and modes, with owners as root, links as links.
Nothing is overwritten.`,
    )
    .argument("<generation>", GENERATION)
    .argument("<path>", "of the guest")
    .argument("<target>", "what is to be made, or a folder to put it in")
    .option("--volume <NAME>", "vda, or vda:1 for a partition; needed when several have files");
  return addThrowawayFlags(command)
    .addHelpText("after", "\nExample:\n  blockhaul files cp -r s3://my-bucket/vms web /etc/fstab fstab.web")
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const [name, path, target] = command.args as [string, string, string];
        await withServedGeneration(name, flags, cli, async (served, { generation, source }, scratch) => {
          await withVolume(served, flags, scratch, cli, async (root, volume) => {
            const made = await copyFiles(root, path, resolve(target), cli.run.signal);
            const bytesFetched = served.bytesFetched();
            cli.output.result(
              { generation, source, volume, path, target: made, bytesFetched },
              () => `Copied ${path} of ${generation} to ${made}, ${formatSize(bytesFetched)} fetched`,
            );
          });
        });
      }),
    );
}

async function listVolumes(
  served: Throwaway<WritableDisk>,
  { generation, source }: StoredManifest,
  { output, run }: CliContext,
): Promise<void> {
  const volumes = (await allVolumes(served, run.signal)).map(({ name, disk, kind }) => {
    return { volume: name, kind: kind ?? null, size: disk.size };
  });
  output.result({ generation, source, volumes }, () =>
    table(
      ["VOLUME", "KIND", "SIZE"],
      volumes.map(({ volume, kind, size }) => [volume, kind ?? "unknown", formatSize(size)]),
    ),
  );
}

async function withVolume(
  served: Throwaway<WritableDisk>,
  flags: Flags,
  scratch: string,
  { run }: CliContext,
  work: (root: string, volume: string) => Promise<void>,
): Promise<void> {
  const volume = pickVolume(await allVolumes(served, run.signal), flags.volume);
  const shown = await showFiles(served, volume, scratch, join(scratch, "files"), run.signal);
  try {
    await work(shown.folder, volume.name);
  } finally {
    await shown.close();
  }
}

function entriesText(entries: readonly FileEntry[]): string {
  const letters = { file: "-", folder: "d", link: "l", other: "?" } as const;
  return table(
    ["MODE", "OWNER", "SIZE", "MODIFIED", "NAME"],
    entries.map(({ type, mode, uid, gid, size, modifiedAt, name, target }) => [
      letters[type] + mode.toString(8).padStart(4, "0"),
      `${uid}:${gid}`,
      String(size),
      modifiedAt.replace(/\.\d+Z$/, "Z"),
      printable(target === null ? name : `${name} -> ${target}`),
    ]),
  );
}

/** What a guest calls its files must not move this terminal's cursor. */
function printable(text: string): string {
  return text.replaceAll(/[\p{Cc}\p{Cf}]/gu, (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`);
}
