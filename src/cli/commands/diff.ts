import { Command } from "commander";
import { formatSize } from "../../bytes/size.ts";
import type { Range } from "../../disk/disk.ts";
import { AppError } from "../../errors.ts";
import { resolveGeneration } from "../../repository/resolve-generation.ts";
import { diffDisks } from "../../restore/diff.ts";
import { action } from "../action.ts";
import { table } from "../output.ts";
import { withSession, type RepositoryFlags } from "../session.ts";
import { pickDisk } from "./restore.ts";

interface Flags extends RepositoryFlags {
  readonly disk?: string;
}

/** Most ranges that are listed; the sums count all. */
const RANGES_MAX = 10_000;

export function diffCommand(): Command {
  return new Command("diff")
    .summary("show where two generations of a disk differ")
    .argument("<before>", "a generation")
    .argument("<after>", "another generation")
    .option("--disk <NAME>", "which disk, when there are several")
    .addHelpText("after", "\nExample:\n  blockhaul diff -r s3://my-bucket/vms web@2026-11-21 web@latest")
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        await withSession(flags, cli, async (session) => {
          const { signal } = cli.run;
          const [before, after] = [
            await resolveGeneration(session.repository, command.args[0]!, signal),
            await resolveGeneration(session.repository, command.args[1]!, signal),
          ];
          const disk = pickDisk(after.disks, flags.disk, after.generation);
          const old = pickDisk(before.disks, disk.name, before.generation);
          if (old.chunkSize !== disk.chunkSize)
            throw new AppError("bug", "E_CHUNK_SIZE", "Chunk sizes differ");
          const ranges: Range[] = [];
          let count = 0;
          let bytes = 0;
          for await (const range of diffDisks(old, disk, session, signal)) {
            count++;
            bytes += range.length;
            if (ranges.length < RANGES_MAX) ranges.push(range);
          }
          const document = {
            before: before.generation,
            after: after.generation,
            disk: disk.name,
            bytes,
            count,
            ranges,
          };
          cli.output.result(document, () =>
            [
              ...(count === 0
                ? []
                : [
                    table(
                      ["OFFSET", "LENGTH"],
                      ranges.map((range) => [String(range.offset), formatSize(range.length)]),
                    ),
                  ]),
              ...(count > ranges.length ? [`… and ${count - ranges.length} more ranges`] : []),
              `${formatSize(bytes)} of ${disk.name} differ, in ${count} ranges`,
            ].join("\n"),
          );
        });
      }),
    );
}
