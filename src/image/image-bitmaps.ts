import { constants } from "node:fs";
import { access } from "node:fs/promises";
import { runUndisturbed } from "../flow/programs.ts";
import { imageError } from "./inspect.ts";

/**
 * How long qemu-img may take, milliseconds. Nothing ends it: while it has the image open, all bitmaps in it are marked as in
 * use, and they would stay so, lost to everybody.
 */
const CHANGE_MS = 60_000;

/** @returns why the image cannot be changed by us; undefined when it can. */
export async function whyReadOnly(path: string): Promise<string | undefined> {
  try {
    await access(path, constants.W_OK);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

/**
 * Begins a persistent bitmap in an image that no VM has open.
 *
 * @param granularity bytes a bit.
 * @throws AppError E_IMAGE_IN_USE, E_IMAGE (source).
 */
export async function addImageBitmap(path: string, name: string, granularity: number): Promise<void> {
  await change(path, ["--add", "--granularity", String(granularity)], name);
}

/** @throws as `addImageBitmap`. */
export async function removeImageBitmap(path: string, name: string): Promise<void> {
  await change(path, ["--remove"], name);
}

async function change(path: string, what: readonly string[], name: string): Promise<void> {
  const args = ["bitmap", "-f", "qcow2", ...what, path, name];
  await runUndisturbed("qemu-img", args, CHANGE_MS).catch((error: unknown) => {
    throw imageError(path, error);
  });
}
