import { lstat, readdir, readlink, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { AppError } from "../errors.ts";
import { runProgram } from "../flow/programs.ts";
import { insideOf } from "./inside.ts";

/** A file as the guest has it. */
export interface FileEntry {
  readonly name: string;
  readonly type: "file" | "folder" | "link" | "other";
  /** The permission bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Bytes. */
  readonly size: number;
  readonly modifiedAt: string;
  /** Of a link. */
  readonly target: string | null;
}

/** Entries looked at, of a folder; more are refused. */
const ENTRIES_MAX = 1_000_000;

/**
 * What is in a folder, by name; or a single file.
 *
 * @param root a mounted volume.
 * @throws AppError E_NO_FILE (notFound), E_LINKS, E_TOO_MANY_FILES (usage).
 */
export async function listFiles(root: string, path: string): Promise<FileEntry[]> {
  const place = await insideOf(root, path, true);
  if (!(await lstat(place)).isDirectory()) return [await describe(place)];
  const names = await readdir(place);
  if (names.length > ENTRIES_MAX) {
    throw new AppError("usage", "E_TOO_MANY_FILES", `${path} has ${names.length} entries; mount it instead`);
  }
  const entries: FileEntry[] = [];
  for (const name of names.sort()) entries.push(await describe(join(place, name)));
  return entries;
}

/**
 * Copies a file or a folder with all that is in it: with times and modes, with owners when we are root, links as links,
 * holes as holes.
 *
 * @param target what is to be made; in a folder that is there, under its own name.
 * @returns what was made.
 * @throws AppError E_TARGET_EXISTS (usage): nothing is overwritten; E_NO_FILE (notFound); E_PROGRAM (source).
 */
export async function copyFiles(
  root: string,
  path: string,
  target: string,
  signal: AbortSignal,
): Promise<string> {
  const place = await insideOf(root, path, true);
  const isFolder = await stat(target).then(
    (found) => found.isDirectory(),
    () => false,
  );
  const made = isFolder ? join(target, basename(path) || basename(root)) : target;
  const isThere = await lstat(made).then(
    () => true,
    () => false,
  );
  if (isThere)
    throw new AppError("usage", "E_TARGET_EXISTS", `${made} is there already; nothing is overwritten`);
  await runProgram(
    "cp",
    ["--archive", "--sparse=always", "--no-target-directory", "--", place, made],
    signal,
  );
  return made;
}

async function describe(place: string): Promise<FileEntry> {
  const found = await lstat(place);
  const isLink = found.isSymbolicLink();
  const type = isLink ? "link" : found.isDirectory() ? "folder" : found.isFile() ? "file" : "other";
  return {
    name: basename(place),
    type,
    mode: found.mode & 0o7777,
    uid: found.uid,
    gid: found.gid,
    size: found.size,
    modifiedAt: found.mtime.toISOString(),
    target: isLink ? await readlink(place) : null,
  };
}
