import { rm } from "node:fs/promises";
import { join } from "node:path";
import { formatSize, MiB } from "../../src/bytes/size.ts";
import { compareFiles } from "../support/images.ts";
import { FreshRepository, makeMixedImage, makeSparseImage, whileExported } from "./disks.ts";
import {
  atMost,
  blockhaul,
  documentOf,
  type Finding,
  inFolder,
  interleave,
  measure,
  note,
  peakOf,
  ratioAtMost,
  ratioOf,
  type Side,
} from "./harness.ts";

const RSS_BAR = 400 * MiB;

/** A full backup to a directory against nbdcopy of the same export to a raw file on the same disk. */
export async function fullDirectory(rounds: number): Promise<Finding[]> {
  return inFolder(async (folder) => {
    const image = await makeMixedImage(folder);
    const copy = join(folder, "copy.raw");
    const repository = FreshRepository.inFolder(folder);
    const removeCopy = (): Promise<void> => rm(copy, { force: true });
    const found = await whileExported(["-f", "raw", image], async ({ uri }) => {
      const sides = await interleave(rounds, {
        blockhaul: {
          prepare: () => repository.start(),
          run: () => measure(blockhaul(["backup", uri, "--name", "mixed", "--json"], repository.env)),
        },
        nbdcopy: { prepare: removeCopy, run: () => measure({ program: "nbdcopy", args: [uri, copy] }) },
        // nbdcopy leaves its copy to the page cache; a backup has to be on the disk when it says so
        "nbdcopy --flush": {
          prepare: removeCopy,
          run: () => measure({ program: "nbdcopy", args: ["--flush", uri, copy] }),
        },
      });
      const [ours, last] = [sides.blockhaul, documentOf(sides.blockhaul.at(-1)!)];
      return [
        ratioAtMost("full 4 GiB to a directory / nbdcopy to a file, wall", ours, sides.nbdcopy, 2.5),
        note("the same / nbdcopy --flush", ratioOf(ours, sides["nbdcopy --flush"]).text),
        atMost("its peak RSS", peakOf(ours), RSS_BAR, formatSize),
        note(
          "read, and stored as",
          `${formatSize(last.stats.bytesRead)}, ${formatSize(last.stats.bytesPacked)}`,
        ),
      ];
    });
    await removeCopy();
    const back = join(folder, "back.raw");
    const restore = await measure(blockhaul(["restore", "mixed", "--to", back], repository.env));
    const difference = await compareFiles(image, back);
    if (difference !== undefined) throw new Error(difference);
    return [...found, note("restored and equal, in", `${restore.seconds.toFixed(1)} s`)];
  });
}

/** What encryption costs, the derivation of the password's key included. */
export async function encrypted(rounds: number): Promise<Finding[]> {
  return inFolder(async (folder) => {
    const image = await makeMixedImage(folder);
    const repositories = {
      encrypted: FreshRepository.encryptedInFolder(folder),
      plain: FreshRepository.inFolder(folder),
    };
    return whileExported(["-f", "raw", image], async ({ uri }) => {
      const backUp = (repository: FreshRepository): Side => ({
        prepare: () => repository.start(),
        run: () => measure(blockhaul(["backup", uri, "--name", "mixed", "--json"], repository.env)),
      });
      const sides = await interleave(rounds, {
        encrypted: backUp(repositories.encrypted),
        plain: backUp(repositories.plain),
      });
      return [
        ratioAtMost("full 4 GiB, encrypted / plain repository, wall", sides.encrypted, sides.plain, 1.25),
        atMost("its peak RSS", peakOf(sides.encrypted), RSS_BAR, formatSize),
      ];
    });
  });
}

/** Memory must not follow the size of the disk. */
export async function sparseMemory(): Promise<Finding[]> {
  return inFolder(async (folder) => {
    const image = await makeSparseImage(folder);
    const repository = FreshRepository.inFolder(folder);
    await repository.start();
    return whileExported(["-f", "raw", image], async ({ uri }) => {
      const done = await measure(blockhaul(["backup", uri, "--name", "sparse", "--json"], repository.env));
      const { stats } = documentOf(done);
      return [
        atMost("peak RSS, 64 GiB sparse export", done.peakRssBytes, RSS_BAR, formatSize),
        note("read of it, in", `${formatSize(stats.bytesRead)}, ${done.seconds.toFixed(1)} s`),
      ];
    });
  });
}
