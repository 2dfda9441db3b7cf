import { extname } from "node:path";
import { AppError } from "../errors.ts";

/** Formats of images that QEMU's tools read for us, by QEMU's names of them. */
export const IMAGE_FORMATS = ["qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc"] as const;

export type SourceFormat = (typeof IMAGE_FORMATS)[number];

const BY_EXTENSION: Readonly<Record<string, SourceFormat>> = {
  ".qcow2": "qcow2",
  ".raw": "raw",
  ".img": "raw",
  ".vmdk": "vmdk",
  ".vdi": "vdi",
  ".vhdx": "vhdx",
  ".vhd": "vpc",
  ".vpc": "vpc",
};

/**
 * The format of an image: the one that is said, else the one that its name tells.
 *
 * Never by what is in it. All of a raw image is the guest's to write: one that writes the header of a qcow2 image there, with
 * one of the host's files for its backing file, would have that file backed up, and could read it from a restored disk
 * (CVE-2008-2004 and its many kin).
 *
 * @throws AppError E_IMAGE_FORMAT (usage).
 */
export function imageFormat(path: string, said: string | undefined): SourceFormat {
  const known = said ?? BY_EXTENSION[extname(path).toLowerCase()];
  const format = IMAGE_FORMATS.find((one) => one === known);
  if (format !== undefined) return format;
  const message =
    said === undefined
      ? `The name of ${path} does not tell its format, and what is in it is not asked; say it with --format raw, or one of ${IMAGE_FORMATS.join(", ")}`
      : `Not a format of images: "${said}"; use ${IMAGE_FORMATS.join(", ")}`;
  throw new AppError("usage", "E_IMAGE_FORMAT", message, { path });
}
