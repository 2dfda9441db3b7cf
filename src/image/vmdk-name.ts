import { basename } from "node:path";
import type { PartialFile } from "../disk/partial-file.ts";
import { AppError } from "../errors.ts";

/*
 * A vmdk of one file begins with a header of one sector (VMware, "Virtual Disk Format 5.0", "Hosted Sparse Extent
 * Header"): 28 u64 the descriptor's first sector, 36 u64 its sectors. The descriptor is text, filled up with zeros.
 */
const SECTOR = 512;
const DESCRIPTOR_AT = 28;
const DESCRIPTOR_SECTORS_AT = 36;

/** QEMU writes 20 sectors; more than this is no descriptor of its making. */
const DESCRIPTOR_SECTORS_MAX = 128;

/** @throws AppError E_TARGET_NAME (usage) for a name that no descriptor can hold. */
export function expectVmdkName(file: PartialFile): void {
  if (!/["\p{Cc}]/u.test(basename(file.place))) return;
  throw nameError("usage", file, "its name must not have quotes or control characters");
}

/**
 * Enters the name that the file will have into its descriptor. QEMU wrote the hidden one, and while QEMU itself does
 * not care, other programs look for the extent under the name that they read there.
 *
 * @throws AppError E_TARGET_NAME (source) when QEMU wrote no descriptor, or one without room.
 */
export async function renameVmdk(file: PartialFile): Promise<void> {
  const name = basename(file.place);
  const header = Buffer.alloc(SECTOR);
  await file.handle.read(header, 0, SECTOR, 0);
  const start = Number(header.readBigUInt64LE(DESCRIPTOR_AT)) * SECTOR;
  const sectors = Number(header.readBigUInt64LE(DESCRIPTOR_SECTORS_AT));
  if (start === 0 || sectors > DESCRIPTOR_SECTORS_MAX)
    throw nameError("source", file, "it has no descriptor");
  const descriptor = Buffer.alloc(sectors * SECTOR);
  await file.handle.read(descriptor, 0, descriptor.length, start);
  const text = descriptor.toString("utf8").replace(/\0+$/, "");
  const renamed = Buffer.from(text.replaceAll(`"${basename(file.path)}"`, () => `"${name}"`));
  if (renamed.length > descriptor.length)
    throw nameError("source", file, "its descriptor has no room for the name");
  descriptor.fill(0).set(renamed);
  await file.handle.write(descriptor, 0, descriptor.length, start);
}

function nameError(kind: "usage" | "source", file: PartialFile, why: string): AppError {
  return new AppError(kind, "E_TARGET_NAME", `Cannot make ${file.place} a vmdk: ${why}`, {
    path: file.place,
  });
}
