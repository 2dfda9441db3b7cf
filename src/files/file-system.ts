import { KiB } from "../bytes/size.ts";
import type { ReadBytes } from "./partitions.ts";

/** What a partition or a whole disk holds, as far as its first bytes tell. */
export type FileSystemKind = "ext" | "xfs" | "fat" | "btrfs" | "ntfs" | "swap" | "LVM" | "LUKS";

/** Where the bytes are that tell it, and what they are. FAT's come last: other boot sectors look like it. */
const SIGNATURES: readonly (readonly [FileSystemKind, number, string])[] = [
  ["LUKS", 0, "LUKS\xba\xbe"],
  ["LVM", 512, "LABELONE"],
  ["xfs", 0, "XFSB"],
  ["ext", 1080, "\x53\xef"],
  ["btrfs", 64 * KiB + 64, "_BHRfS_M"],
  ["ntfs", 3, "NTFS    "],
  ["swap", 4086, "SWAPSPACE2"],
  ["fat", 82, "FAT32   "],
  ["fat", 54, "FAT16   "],
  ["fat", 54, "FAT12   "],
];

/** @param size of what is read, bytes. */
export async function identifyFileSystem(size: number, read: ReadBytes): Promise<FileSystemKind | undefined> {
  for (const [kind, offset, signature] of SIGNATURES) {
    if (offset + signature.length > size) continue;
    const bytes = await read(offset, signature.length);
    if (bytes.toString("latin1") === signature) return kind;
  }
  return undefined;
}
