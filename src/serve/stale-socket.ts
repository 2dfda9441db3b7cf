import { lstat, unlink } from "node:fs/promises";
import { connect } from "node:net";
import { systemCode } from "../errors.ts";

/**
 * Removes a Unix socket on which nobody listens any more: a server that was killed leaves its own behind, and a restart
 * would find the place taken. Anything else at the path is left alone.
 */
export async function removeStaleSocket(path: string): Promise<void> {
  const found = await lstat(path).catch(() => undefined); // whoever listens there will say what is wrong
  if (found?.isSocket() === true && (await refuses(path))) await unlink(path);
}

async function refuses(path: string): Promise<boolean> {
  return await new Promise((resolve) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(false);
    });
    socket.once("error", (error) => resolve(systemCode(error) === "ECONNREFUSED"));
  });
}
