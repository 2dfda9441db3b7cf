import { lstat, readlink } from "node:fs/promises";
import { join } from "node:path";
import { AppError, systemCode } from "../errors.ts";

/** As many as Linux follows (path_resolution(7)). */
const LINKS_MAX = 40;

/**
 * Where a path leads inside of a mounted volume, as the guest would see it: links are followed there, and never to what
 * this host has under that name.
 *
 * @param root the mounted volume.
 * @param path of the guest, with or without "/" in front.
 * @param last whether a link at the end is followed too.
 * @returns a path below `root` without links, but perhaps the last.
 * @throws AppError E_NO_FILE (notFound); E_LINKS (usage): links go in circles.
 */
export async function insideOf(root: string, path: string, last: boolean): Promise<string> {
  const waiting = partsOf(path).reverse();
  const done: string[] = [];
  let links = 0;
  for (let part = waiting.pop(); part !== undefined; part = waiting.pop()) {
    if (part === "..") {
      done.pop();
      continue;
    }
    const here = join(root, ...done, part);
    const found = await lstat(here).catch((error: unknown) => {
      const code = systemCode(error);
      if (code !== "ENOENT" && code !== "ENOTDIR") throw error;
      throw new AppError("notFound", "E_NO_FILE", `There is no ${path} on this volume`, { path }, error);
    });
    if (!found.isSymbolicLink() || (waiting.length === 0 && !last)) {
      done.push(part);
      continue;
    }
    if (++links > LINKS_MAX)
      throw new AppError("usage", "E_LINKS", `The links in ${path} go in circles`, { path });
    const target = await readlink(here);
    if (target.startsWith("/")) done.length = 0;
    waiting.push(...partsOf(target).reverse());
  }
  return join(root, ...done);
}

function partsOf(path: string): string[] {
  return path.split("/").filter((part) => part !== "" && part !== ".");
}
