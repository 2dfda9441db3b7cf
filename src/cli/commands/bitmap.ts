import { Command } from "commander";
import { formatSize, parseSize } from "../../bytes/size.ts";
import { readBitmapRanges, type BitmapRanges } from "../../qemu/bitmap-ranges.ts";
import {
  addBitmap,
  listBitmaps,
  removeBitmap,
  type BitmapList,
  type BitmapOwner,
  type OwnedBitmap,
  type VerbOptions,
} from "../../qemu/bitmap-verbs.ts";
import type { VmBitmap } from "../../qemu/inventory.ts";
import { qmpPath } from "../../settings.ts";
import { action, type CliContext } from "../action.ts";
import { table } from "../output.ts";
import { addScratchFlag, scratchDirectory, type ScratchFlag } from "../qemu-flags.ts";

interface DiskFlags extends ScratchFlag {
  readonly disk: string;
}

interface AddFlags extends DiskFlags {
  readonly granularity: string;
  readonly disabled?: boolean;
  readonly transient?: boolean;
}

interface RemoveFlags extends DiskFlags {
  readonly force?: boolean;
}

export function bitmapCommand(): Command {
  return new Command("bitmap")
    .summary("list, add, remove and read the dirty bitmaps of a running QEMU")
    .description(
      "Dirty bitmaps of a running QEMU, for scripts. Backups look after their own: none of this is needed for them.",
    )
    .addHelpText(
      "after",
      `
Examples:
  blockhaul bitmap list qmp:/run/web/qmp.sock
  blockhaul bitmap ranges qmp:/run/web/qmp.sock --disk vda mine --json`,
    )
    .addCommand(listCommand())
    .addCommand(addCommand())
    .addCommand(removeCommand())
    .addCommand(rangesCommand());
}

function verb(name: string, summary: string, example: string): Command {
  return new Command(name)
    .summary(summary)
    .argument("<source>", "qmp:PATH of QEMU's monitor")
    .addHelpText("after", `\nExample:\n  blockhaul bitmap ${name} qmp:/run/web/qmp.sock${example}`);
}

function diskVerb(name: string, summary: string, example: string): Command {
  return verb(name, summary, ` --disk vda mine${example}`)
    .argument("<name>", "of the bitmap")
    .requiredOption("--disk <NAME>", "of the disk, as `bitmap list` says it");
}

function options(source: string, flags: ScratchFlag, { output }: CliContext): VerbOptions {
  return {
    qmp: qmpPath(source),
    scratchDir: scratchDirectory(flags),
    warn: (message) => output.warn(message),
  };
}

function listCommand(): Command {
  const command = verb("list", "the disks, their bitmaps, and whose they are", "").description(
    "Lists the disks of a running QEMU with their bitmaps: those that generations of a repository go by, those of a run, and those of others. Changes nothing.",
  );
  return addScratchFlag(command).action(
    action(async (cli, command) => {
      const vm = options(command.args[0]!, command.optsWithGlobals<ScratchFlag>(), cli);
      const list = await listBitmaps(vm, cli.run.signal);
      cli.output.result(list, () => listText(list));
    }),
  );
}

function addCommand(): Command {
  const command = diskVerb("add", "begin a new bitmap", "")
    .description(
      "Begins a new bitmap, which records what the guest writes from now on. It outlives QEMU where the image can keep it (qcow2, not raw).",
    )
    .option("--granularity <SIZE>", "bytes a bit, a power of 2", "64KiB")
    .option("--disabled", "record nothing until something enables it")
    .option("--transient", "it goes when QEMU ends");
  return addScratchFlag(command).action(
    action(async (cli, command) => {
      const { disk, granularity, disabled, transient, ...flags } = command.optsWithGlobals<AddFlags>();
      const [source, name] = command.args as [string, string];
      const wish = {
        disk,
        name,
        granularity: parseSize(granularity),
        disabled: disabled === true,
        transient: transient === true,
      };
      const bitmap = await addBitmap(options(source, flags, cli), wish, cli.run.signal);
      cli.output.result(
        { disk, bitmap },
        () =>
          `Disk ${disk} has a bitmap ${name}: ${stateOf(bitmap)}, ${formatSize(bitmap.granularity)} a bit, ` +
          (bitmap.persistent ? "stored in the image when QEMU ends" : "gone when QEMU ends"),
      );
    }),
  );
}

function removeCommand(): Command {
  const command = diskVerb("remove", "remove a bitmap", "")
    .description(
      "Removes a bitmap. One that a generation goes by is the parent of the next incremental: without it the next backup is a rescan.",
    )
    .option("--force", "also when a generation goes by it");
  return addScratchFlag(command).action(
    action(async (cli, command) => {
      const flags = command.optsWithGlobals<RemoveFlags>();
      const [source, name] = command.args as [string, string];
      const which = { disk: flags.disk, name };
      await removeBitmap(options(source, flags, cli), which, flags.force === true, cli.run.signal);
      cli.output.result(
        { disk: flags.disk, removed: name },
        () => `Disk ${flags.disk} has no bitmap ${name} any more`,
      );
    }),
  );
}

function rangesCommand(): Command {
  const command = diskVerb("ranges", "what is dirty in a bitmap", " --json").description(
    "Reads what is dirty in a bitmap over NBD, from a copy that is made of it and exported for a moment; the bitmap goes on recording.",
  );
  return addScratchFlag(command).action(
    action(async (cli, command) => {
      const flags = command.optsWithGlobals<DiskFlags>();
      const [source, name] = command.args as [string, string];
      const which = { disk: flags.disk, name };
      const ranges = await readBitmapRanges(options(source, flags, cli), which, cli.run.signal);
      cli.output.result(ranges, () => rangesText(ranges));
    }),
  );
}

function listText({ disks, nodes }: BitmapList): string {
  const places = [
    ...disks.map(({ disk, bitmaps }) => ({ place: disk, bitmaps })),
    ...nodes.map(({ node, bitmaps }) => ({ place: `(node ${node})`, bitmaps })),
  ];
  const rows = places.flatMap(({ place, bitmaps }) =>
    bitmaps.length === 0 ? [[place, "-"]] : bitmaps.map((bitmap) => [place, ...rowOf(bitmap)]),
  );
  return table(["DISK", "BITMAP", "STATE", "PERSISTENT", "GRANULARITY", "DIRTY", "OF"], rows);
}

function rowOf(bitmap: OwnedBitmap): string[] {
  const { name, persistent, granularity, dirtyBytes, owner } = bitmap;
  const sizes = [formatSize(granularity), formatSize(dirtyBytes)];
  return [name, stateOf(bitmap), persistent ? "yes" : "no", ...sizes, whose(owner)];
}

function stateOf({ inconsistent, recording, busy }: VmBitmap): string {
  const state = inconsistent ? "inconsistent" : recording ? "recording" : "disabled";
  return busy ? `${state}, busy` : state;
}

function whose(owner: BitmapOwner): string {
  switch (owner.kind) {
    case "generation":
      return `disk ${owner.disk} in generation ${owner.generation} of repository ${owner.repository}`;
    case "run":
      return owner.pid === null ? "a run that died" : `a run at work (process ${owner.pid})`;
    case "foreign":
      return "others";
  }
}

function rangesText({ disk, bitmap, ranges, bytes }: BitmapRanges): string {
  const sum = `${formatSize(bytes)} of ${disk} are dirty in ${bitmap}, in ${ranges.length} ranges`;
  if (ranges.length === 0) return sum;
  const rows = ranges.map(({ offset, length }) => [String(offset), String(length)]);
  return `${table(["OFFSET", "LENGTH"], rows)}\n${sum}`;
}
