import { readFile } from "node:fs/promises";

/** Pids of the guard of a run, of which there is one or none. @param pid of the run. */
export async function guardsOf(pid: number): Promise<number[]> {
  const children = await readFile(`/proc/${pid}/task/${pid}/children`, "utf8").catch(() => "");
  const pids = children.split(" ").filter(Boolean).map(Number);
  return await guardsAmong(pids);
}

/** Those of these processes that are guards. The number of one that has ended may be another's by now. */
export async function guardsAmong(pids: readonly number[]): Promise<number[]> {
  const lines = await Promise.all(pids.map(commandLineOf));
  return pids.filter((_, index) => lines[index]!.includes("/guard/process"));
}

/** Empty when there is no such process. */
async function commandLineOf(pid: number): Promise<string> {
  return await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
}
