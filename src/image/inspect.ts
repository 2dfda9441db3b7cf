import { constants } from "node:fs";
import { access, open, stat } from "node:fs/promises";
import { z } from "zod";
import { MiB } from "../bytes/size.ts";
import { AppError, hasCode, messageOf, systemCode } from "../errors.ts";
import { runProgram } from "../flow/programs.ts";
import type { SourceFormat } from "./formats.ts";

/** What qemu-img may say of an image, bytes: a few hundred for each bitmap and each snapshot in it. */
const INFO_MAX = 16 * MiB;

/** How long it may take to say it, milliseconds. */
const INFO_MS = 60_000;

/** Images below an image; more is a mistake, or a circle. */
const CHAIN_MAX = 200;

const QCOW2_MAGIC = Buffer.from("QFI\xfb", "latin1");

/** A persistent dirty bitmap, while no VM has the image. */
export interface ImageBitmap {
  readonly name: string;
  /** Whatever opens the image for writing records in it. */
  readonly recording: boolean;
  /** Whoever had the image open ended without storing it. It can only be removed. */
  readonly inconsistent: boolean;
}

/** An image that no VM has open for writing. */
export interface InspectedImage {
  readonly path: string;
  readonly format: string;
  /** Of the disk in it, bytes. */
  readonly size: number;
  readonly bitmaps: readonly ImageBitmap[];
  /** Whether bitmaps can be stored in it. */
  readonly canPersist: boolean;
  /** Its backing file, and that one's, and so on. */
  readonly below: readonly { readonly path: string; readonly bitmaps: readonly ImageBitmap[] }[];
}

const infoSchema = z.object({
  format: z.string(),
  "virtual-size": z.int().nonnegative(),
  encrypted: z.boolean().optional(),
  "backing-filename": z.string().optional(),
  "full-backing-filename": z.string().optional(),
  "backing-filename-format": z.string().optional(),
  "format-specific": z
    .object({
      data: z.object({
        compat: z.string().optional(),
        corrupt: z.boolean().optional(),
        bitmaps: z.array(z.object({ name: z.string(), flags: z.array(z.string()) })).optional(),
      }),
    })
    .optional(),
});

type Info = z.infer<typeof infoSchema>;

/**
 * Looks at an image and those below it. Changes nothing.
 *
 * @param path absolute: QEMU takes "a:b" for a protocol.
 * @throws AppError E_IMAGE_MISSING (notFound), E_IMAGE_KIND, E_IMAGE_ENCRYPTED (usage), E_IMAGE_IN_USE, E_IMAGE (source),
 *   E_IMAGE_CORRUPT (source), E_IMAGE_BACKING (source); E_PROGRAM_MISSING (usage).
 */
export async function inspectImage(
  path: string,
  format: SourceFormat,
  signal: AbortSignal,
): Promise<InspectedImage> {
  await expectReadable(path);
  const top = await infoOf(path, format, signal);
  const below: { path: string; bitmaps: ImageBitmap[] }[] = [];
  for (let [upper, info] = [path, top]; info["backing-filename"] !== undefined;) {
    if (below.length === CHAIN_MAX) {
      const message = `More than ${CHAIN_MAX} images lie below ${path}`;
      throw new AppError("source", "E_IMAGE_BACKING", message, { path });
    }
    const backing = info["full-backing-filename"] ?? info["backing-filename"];
    const backingFormat = info["backing-filename-format"];
    if (backingFormat === undefined) throw unknownBacking(upper, backing);
    info = await infoOf(backing, backingFormat, signal).catch((error: unknown) => {
      throw brokenChain(upper, backing, error);
    });
    below.push({ path: backing, bitmaps: bitmapsOf(info) });
    upper = backing;
  }
  return {
    path,
    format: top.format,
    size: top["virtual-size"],
    bitmaps: bitmapsOf(top),
    canPersist: top.format === "qcow2" && top["format-specific"]?.data.compat !== "0.10",
    below,
  };
}

/** Whether a raw image begins as a qcow2 image does. It stays raw; but it may be that its name is wrong. */
export async function looksLikeQcow2(path: string): Promise<boolean> {
  const file = await open(path);
  try {
    const start = Buffer.alloc(QCOW2_MAGIC.length);
    await file.read(start, 0, start.length, 0);
    return start.equals(QCOW2_MAGIC);
  } finally {
    await file.close();
  }
}

/**
 * What a failure of QEMU's tools says of an image. Errors of ours, and missing programs, stay as they are.
 * @param as " as qcow2"
 */
export function imageError(path: string, error: unknown, as = ""): unknown {
  if (!hasCode(error, "E_PROGRAM")) return error;
  if (error.message.includes("Is another process using the image")) {
    const message =
      `Image ${path} is in use: if a VM runs on it, back the VM up by qmp: or libvirt:, which do that while it runs; ` +
      "else wait until whatever has it open is done";
    return new AppError("source", "E_IMAGE_IN_USE", message, { path }, error);
  }
  return new AppError(
    "source",
    "E_IMAGE",
    `Image ${path} cannot be read${as}: ${messageOf(error)}`,
    { path },
    error,
  );
}

async function expectReadable(path: string): Promise<void> {
  try {
    const found = await stat(path);
    if (!found.isFile() && !found.isBlockDevice()) {
      const what = found.isDirectory() ? "a folder" : "neither a file nor a block device";
      throw new AppError("usage", "E_IMAGE_KIND", `${path} is ${what}, not the image of a disk`, { path });
    }
    await access(path, constants.R_OK);
  } catch (error) {
    if (error instanceof AppError) throw error;
    if (systemCode(error) === "ENOENT")
      throw new AppError("notFound", "E_IMAGE_MISSING", `There is no image ${path}`, { path }, error);
    const message = `Image ${path} cannot be read: ${messageOf(error)}`;
    throw new AppError("source", "E_IMAGE", message, { path }, error);
  }
}

async function infoOf(path: string, format: string, signal: AbortSignal): Promise<Info> {
  const until = AbortSignal.any([signal, AbortSignal.timeout(INFO_MS)]);
  const args = ["info", "--output=json", "-f", format, path];
  const text = await runProgram("qemu-img", args, until, INFO_MAX).catch((error: unknown) => {
    signal.throwIfAborted();
    const failure = until.aborted ? new AppError("source", "E_PROGRAM", tooLong()) : error;
    throw imageError(path, failure, ` as ${format}`);
  });
  const info = infoSchema.parse(JSON.parse(text));
  if (info.encrypted === true) {
    const message =
      `Image ${path} is encrypted by QEMU and its key is not asked for: serve it yourself by qemu-nbd --read-only with ` +
      "--object secret, and back up that export";
    throw new AppError("usage", "E_IMAGE_ENCRYPTED", message, { path });
  }
  if (info["format-specific"]?.data.corrupt === true) {
    const message = `Image ${path} is marked as corrupt: look at it with qemu-img check`;
    throw new AppError("source", "E_IMAGE_CORRUPT", message, { path });
  }
  return info;
}

function tooLong(): string {
  return `qemu-img said nothing for ${INFO_MS / 1000} s`;
}

function bitmapsOf(info: Info): ImageBitmap[] {
  return (info["format-specific"]?.data.bitmaps ?? []).map(({ name, flags }) => {
    const inconsistent = flags.includes("in-use");
    return { name, inconsistent, recording: flags.includes("auto") && !inconsistent };
  });
}

/** QEMU would look what is in it (see `imageFormat`). */
function unknownBacking(path: string, backing: string): AppError {
  const message =
    `Image ${path} does not say which format its backing file ${backing} has; enter it, for example with ` +
    `qemu-img rebase -u -F raw -b ${backing} ${path}`;
  return new AppError("source", "E_IMAGE_BACKING", message, { path, backing });
}

function brokenChain(path: string, backing: string, error: unknown): unknown {
  if (!(error instanceof AppError) || error.code !== "E_IMAGE") return error;
  const message = `The backing file of image ${path}, ${backing}, cannot be read: ${messageOf(error.cause)}`;
  return new AppError("source", "E_IMAGE_BACKING", message, { path, backing }, error);
}
