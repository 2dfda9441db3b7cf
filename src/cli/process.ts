import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import { systemCode } from "../errors.ts";
import type { LeaseHolder } from "../repository/leases.ts";

/** Of package.json. */
export function packageVersion(): string {
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}

/** Who holds the leases that this process takes. */
export function thisProcess(): LeaseHolder {
  return { host: hostname(), pid: process.pid };
}

/** True for a process of this host that runs no more; nothing is known of other hosts'. */
export function isGone({ host, pid }: LeaseHolder): boolean {
  if (host !== hostname() || pid === process.pid) return false;
  try {
    process.kill(pid, 0);
    return false;
  } catch (error) {
    return systemCode(error) === "ESRCH";
  }
}
