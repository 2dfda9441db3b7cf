import { resolve } from "node:path";
import { Command, Option } from "commander";
import { resolveGeneration } from "../../repository/resolve-generation.ts";
import { withPin } from "../../restore/pin.ts";
import { action } from "../action.ts";
import { withSession, type RepositoryFlags } from "../session.ts";
import { pickDisk, pinOptions, restoreTo } from "./restore.ts";

interface Flags extends RepositoryFlags {
  readonly to: "raw" | "qcow2" | "vmdk";
  readonly disk?: string;
  readonly force?: boolean;
}

export function exportCommand(): Command {
  return new Command("export")
    .summary("write a disk of a generation into an image file for other programs")
    .description(
      `Writes a disk of a generation into a new image FILE that needs no blockhaul any more, and checks every byte on the
way. The data goes straight into the file, without a temporary copy; a failed export leaves no file.

Formats: raw (sparse), qcow2, vmdk (one sparse file, as VMware Workstation and VirtualBox take it; for ESXi convert it
there with vmkfstools -i). qcow2 and vmdk need qemu-img and qemu-nbd.`,
    )
    .argument(
      "<generation>",
      "an id, a unique prefix of one, latest, NAME, NAME@latest, or NAME@2026-11-22T03:00Z",
    )
    .argument("<file>", "which file to write")
    .addOption(
      new Option("--to <FORMAT>", "the file's format")
        .choices(["raw", "qcow2", "vmdk"])
        .makeOptionMandatory(),
    )
    .option("--disk <NAME>", "which disk, when the generation has several")
    .option("--force", "overwrite a file that exists")
    .addHelpText(
      "after",
      `
Examples:
  blockhaul export -r /backup/vms web --to qcow2 web.qcow2
  blockhaul export -r s3://my-bucket/vms db@2026-11-22T03:00Z --disk vda --to vmdk db.vmdk`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const [generation, file] = command.args as [string, string];
        // a whole path is never taken for a URI or another format
        const to = flags.to === "raw" ? resolve(file) : `${flags.to}:${file}`;
        await withSession(flags, cli, async (session) => {
          const manifest = await resolveGeneration(session.repository, generation, cli.run.signal);
          const disk = pickDisk(manifest.disks, flags.disk, manifest.generation);
          await withPin(session.repository, manifest, pinOptions(cli), cli.run.signal, () =>
            restoreTo({ to, force: flags.force === true }, manifest, disk, session, cli),
          );
        });
      }),
    );
}
