import { mkdir, readFile, readdir, realpath, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { z } from "zod";
import { AppError, messageOf, systemCode } from "../errors.ts";
import { RunNames, tokenOfFile } from "./names.ts";

const recordSchema = z.object({
  format: z.literal(1),
  token: z.string(),
  /** Whose run it is; the two together name a process until the machine starts anew. 0: the run gave up. */
  pid: z.int().nonnegative(),
  /** Clock ticks from the machine's start to the process's. */
  startTicks: z.int().nonnegative(),
  /** The monitor's socket, or what else names the VM. */
  qmp: z.string(),
  /** The run has stopped the VM, or is about to, and the VM ran before. */
  stopped: z.boolean(),
  /** The run has frozen the guest, or is about to, through an agent that others use too. */
  froze: z.boolean().default(false),
  /** The run has asked for its point in time, which may come to be although the run is dead. */
  beginning: z.boolean().default(false),
});

/** What a run tells those after it: that it lives, and what only it can know. */
type RunRecord = z.infer<typeof recordSchema>;

/** Larger is not ours, in bytes. */
const RECORD_SIZE_MAX = 16 * 1024;

/**
 * The stat of a process begins "PID (COMM) STATE …", and COMM may hold anything; the start is the 22nd field. One
 * that has ended and was not waited for (Z, X) is none.
 */
const STAT_FORM = /^(\d+) \(.*\) [^ZX](?: -?\d+){18} (\d+) /s;

/**
 * The file that marks a run in its scratch folder. It is there before anything of the run is in QEMU and goes after
 * everything else is gone: what it says is found by whoever cleans up.
 */
export class RunFile {
  readonly path: string;
  #record: RunRecord;

  private constructor(path: string, record: RunRecord) {
    this.path = path;
    this.#record = record;
  }

  /**
   * Of a run of this process. Makes the folder when it is not there.
   *
   * @param qmp the monitor's path, or what else names the VM to all that look for its runs.
   * @throws AppError E_SCRATCH_FOLDER (usage) when the folder cannot be written.
   */
  static async create(folder: string, token: string, qmp: string): Promise<RunFile> {
    const path = new RunNames(token).runFile(folder);
    try {
      await mkdir(folder, { recursive: true });
      const record: RunRecord = {
        format: 1,
        token,
        ...(await processOf("self"))!,
        qmp: await canonical(qmp),
        stopped: false,
        froze: false,
        beginning: false,
      };
      const file = new RunFile(path, record);
      await file.#write(record);
      return file;
    } catch (error) {
      const message = `Cannot write to the scratch folder ${folder}: ${messageOf(error)}; choose one with --scratch`;
      throw new AppError("usage", "E_SCRATCH_FOLDER", message, { folder }, error);
    }
  }

  /** To be told before the VM is stopped, and after it goes on. */
  async setStopped(stopped: boolean): Promise<void> {
    await this.#write({ ...this.#record, stopped });
  }

  /** To be told before the guest is frozen and the point in time asked for, and after the answers. */
  async setTaking(taking: Pick<RunRecord, "froze" | "beginning">): Promise<void> {
    await this.#write({ ...this.#record, ...taking });
  }

  /** The run could not clean up after itself: the next one may, although this process lives on. */
  async giveUp(): Promise<void> {
    await this.#write({ ...this.#record, pid: 0 });
  }

  async #write(record: RunRecord): Promise<void> {
    const next = `${this.path}.new`; // a reader sees one record or the other
    await writeFile(next, JSON.stringify(record), { mode: 0o600 });
    await rename(next, this.path);
    this.#record = record;
  }
}

/** A run that left a file behind, or is at work. */
export interface FoundRun {
  readonly token: string;
  /** Its process, if that lives. */
  readonly pid: number | undefined;
  readonly stopped: boolean;
  readonly froze: boolean;
  readonly beginning: boolean;
  /** Whether it used this monitor, not another one of this VM or of another. */
  readonly sameMonitor: boolean;
}

/** The runs that the folder knows of. */
export async function findRuns(folder: string, qmp: string): Promise<FoundRun[]> {
  const found = new Map<string, FoundRun>();
  const path = await canonical(qmp);
  for (const name of (await filesOf(folder)).sort()) {
    if (!/\.run(?:\.new)?$/.test(name)) continue;
    const record = await readRecord(join(folder, name));
    if (record === undefined || record.token !== tokenOfFile(name)) continue;
    const { token, stopped, froze, beginning } = record;
    if (found.has(token)) continue; // ".run" comes before ".run.new", which is only there for a moment
    const pid = (await isAlive(record)) ? record.pid : undefined;
    found.set(token, { token, pid, stopped, froze, beginning, sameMonitor: record.qmp === path });
  }
  return [...found.values()];
}

/** Removes the files of a run: the one that marks it last. */
export async function removeRunFiles(folder: string, token: string): Promise<void> {
  const names = (await filesOf(folder)).filter((name) => tokenOfFile(name) === token);
  const mark = basename(new RunNames(token).runFile(folder));
  for (const name of [...names.filter((other) => other !== mark), mark]) {
    await rm(join(folder, name), { force: true });
  }
}

async function filesOf(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    if (systemCode(error) === "ENOENT") return [];
    const message = `Cannot read the scratch folder ${folder}: ${messageOf(error)}; choose one with --scratch`;
    throw new AppError("usage", "E_SCRATCH_FOLDER", message, { folder }, error);
  }
}

async function readRecord(path: string): Promise<RunRecord | undefined> {
  try {
    const text = await readFile(path, "utf8");
    if (text.length > RECORD_SIZE_MAX) return undefined;
    return recordSchema.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined; // it went meanwhile, or is none of ours
  }
}

async function isAlive({ pid, startTicks }: RunRecord): Promise<boolean> {
  return pid !== 0 && (await processOf(pid))?.startTicks === startTicks;
}

async function processOf(pid: number | "self"): Promise<{ pid: number; startTicks: number } | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  const match = STAT_FORM.exec(stat);
  return match === null ? undefined : { pid: Number(match[1]), startTicks: Number(match[2]) };
}

/** One spelling for a socket's path, which may be gone. */
async function canonical(path: string): Promise<string> {
  try {
    return join(await realpath(dirname(path)), basename(path));
  } catch {
    return path;
  }
}
