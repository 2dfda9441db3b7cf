import { AppError, hasCode, messageOf } from "../errors.ts";
import { accessOf, type Job, type Runner } from "../jobs/job.ts";
import { openRepository, readConfig, type Repository } from "../repository/config.ts";
import { listGenerationNames, loadGeneration } from "../repository/generations.ts";
import { DEFAULT_LEASE } from "../repository/leases.ts";
import type { Manifest } from "../repository/manifest.ts";
import { parseKey, Prefix, uuidTime } from "../repository/names.ts";
import { listRuns, listRunNames } from "../repository/runs.ts";
import { plainSealer } from "../repository/sealing.ts";
import { withStore } from "../session/session.ts";
import type { ObjectStore } from "../store/store.ts";
import type { Finding, FindingKind } from "./findings.ts";
import { EARLIER_MAX, jumpsOf } from "./jumps.ts";

const HOUR_MS = 3_600_000;

/** A lease that was not renewed for so long belongs to a run that died; far more than it counts, milliseconds. */
const LEASE_STALE_MS = 5 * DEFAULT_LEASE.ttlMs;

/** Uploads that are older belong to nobody, milliseconds: no run lasts so long. */
const UPLOAD_STALE_MS = 48 * HOUR_MS;

/** Runs of a source that are read: restores stand between the backups. */
const RUNS_READ = 8;

/** Numbers about a source of a job. */
export interface SourceNumbers {
  readonly job: string;
  readonly source: string;
  /** Undefined: there is no generation. */
  readonly ageMs: number | undefined;
  /** Of the newest generation; undefined without the key of an encrypted repository. */
  readonly newest: Pick<Manifest, "stats"> | undefined;
}

export interface RepositoryLook {
  /** By its name in the file. */
  readonly repository: string;
  readonly findings: readonly Finding[];
  readonly sources: readonly SourceNumbers[];
  /** False when it could not be looked at. */
  readonly known: boolean;
}

/**
 * Looks at a repository: each source of its jobs, and what nobody may have noticed. Reads names, a few records and manifests,
 * and no data; writes nothing. Of an encrypted repository whose password is not there it looks at names alone: neither the
 * reasons of failures nor jumps are seen then.
 *
 * @param jobs that share the repository.
 * @returns also when it cannot be opened.
 */
export async function lookAtRepository(
  repository: string,
  jobs: readonly Job[],
  runner: Runner,
  signal: AbortSignal,
): Promise<RepositoryLook> {
  const [job] = jobs;
  try {
    const access = readable(job!, runner);
    return await withStore(access, async (store) => {
      const opened = await openKnown(store, access, signal);
      return await new RepositoryLooker(repository, jobs, opened, signal).look();
    });
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof AppError)) throw error;
    const message = `The repository ${repository} cannot be looked at: ${messageOf(error)}`;
    const finding: Finding = { kind: "unreachable", place: repository, subject: "", message };
    return { repository, findings: [finding], sources: [], known: false };
  }
}

type Access = ReturnType<typeof accessOf>;

/** Without the variable that holds the password there is no password, and names can still be read. */
function readable(job: Job, runner: Runner): Access {
  try {
    return accessOf(job, runner);
  } catch (error) {
    if (!hasCode(error, "E_PASSWORD_ENV")) throw error;
    const { repositories } = job.file;
    const { url } = repositories[job.entry.repository]!;
    const file = { ...job.file, repositories: { [job.entry.repository]: { url } } };
    return accessOf({ ...job, file }, { ...runner, environment: {} });
  }
}

interface Opened {
  readonly repository: Repository;
  /** False: only what names say can be known. */
  readonly readable: boolean;
}

async function openKnown(store: ObjectStore, { password }: Access, signal: AbortSignal): Promise<Opened> {
  try {
    return { repository: await openRepository(store, signal, password), readable: true };
  } catch (error) {
    if (!hasCode(error, "E_PASSWORD_NEEDED")) throw error;
    const { config } = await readConfig(store, signal);
    return { repository: { store, config, sealer: plainSealer() }, readable: false };
  }
}

class RepositoryLooker {
  readonly #name: string;
  readonly #jobs: readonly Job[];
  readonly #repository: Repository;
  readonly #readable: boolean;
  readonly #signal: AbortSignal;
  readonly #findings: Finding[] = [];
  #nowMs = 0;

  constructor(name: string, jobs: readonly Job[], { repository, readable }: Opened, signal: AbortSignal) {
    this.#name = name;
    this.#jobs = jobs;
    this.#repository = repository;
    this.#readable = readable;
    this.#signal = signal;
  }

  async look(): Promise<RepositoryLook> {
    this.#nowMs = (await this.#repository.store.now(this.#signal)).getTime();
    const names = await listGenerationNames(this.#repository, undefined, this.#signal);
    const bySource = Map.groupBy(names, ({ source }) => source);
    const leases = await this.#leases();
    const sources: SourceNumbers[] = [];
    const seen = new Set<string>();
    for (const job of this.#jobs) {
      for (const source of job.entry.sources) {
        const ids = (bySource.get(source) ?? []).map(({ generation }) => generation);
        const manifests = seen.has(source) ? [] : await this.#manifests(source, ids);
        if (!seen.has(source)) {
          for (const { kind, message } of jumpsOf(manifests)) this.#add(kind, source, message);
          await this.#runs(source, ids.at(-1), leases);
          seen.add(source);
        }
        const ageMs = ids.length === 0 ? undefined : this.#nowMs - (uuidTime(ids.at(-1)!) ?? 0);
        this.#age(job, source, ageMs);
        sources.push({ job: job.name, source, ageMs, newest: manifests.at(-1) });
      }
    }
    for (const source of bySource.keys()) {
      if (seen.has(source)) continue;
      this.#add(
        "uncovered",
        source,
        `${source} has generations in ${this.#name}, and no job backs it up any more`,
      );
    }
    await this.#uploads();
    await this.#damaged();
    return { repository: this.#name, findings: this.#findings, sources, known: true };
  }

  #add(kind: FindingKind, subject: string, message: string): void {
    this.#findings.push({ kind, place: this.#name, subject, message });
  }

  #age({ name, entry: { rpo } }: Job, source: string, ageMs: number | undefined): void {
    if (rpo === undefined || (ageMs !== undefined && ageMs <= rpo)) return;
    const have =
      ageMs === undefined ? "has no generation" : `has a newest generation of ${spanText(ageMs)} ago`;
    const message = `${source} is late: it ${have}, and job ${name} allows ${spanText(rpo)}`;
    this.#add("late", `${name}/${source}`, message);
  }

  /** Oldest first; what is damaged is left out. */
  async #manifests(source: string, ids: readonly string[]): Promise<Manifest[]> {
    if (!this.#readable) return [];
    const manifests: Manifest[] = [];
    for (const generation of ids.slice(-1 - EARLIER_MAX)) {
      try {
        manifests.push(await loadGeneration(this.#repository, { source, generation }, this.#signal));
      } catch (error) {
        if (hasCode(error, "E_NO_GENERATION")) continue; // forgotten since it was listed
        if (!(error instanceof AppError) || error.kind !== "corrupt") throw error;
        this.#add("damaged", `generations/${generation}`, error.message);
      }
    }
    return manifests;
  }

  /** Runs whose lease counts; those that do not count any more are found. */
  async #leases(): Promise<ReadonlySet<string>> {
    const live = new Set<string>();
    const stale = new Map<string, { readonly run: string; readonly ageMs: number }>();
    for await (const { key, lastModified } of this.#repository.store.list(Prefix.leases, this.#signal)) {
      const name = parseKey(key);
      if (name?.type !== "lease") continue;
      const ageMs = this.#nowMs - lastModified.getTime();
      if (ageMs <= LEASE_STALE_MS) {
        live.add(name.run);
        continue;
      }
      stale.set(name.source, { run: name.run, ageMs }); // the latest run comes last
    }
    for (const [source, { run, ageMs }] of stale) {
      const what = source.startsWith("-") ? `the ${source.slice(1)}` : source;
      const message = `The run ${run} of ${what} left its lease ${spanText(ageMs)} ago: its host died, or could not reach the storage; the next run takes over`;
      this.#add("lease", source, message);
    }
    return live;
  }

  /** The latest backup of a source, if it is newer than the newest generation. */
  async #runs(source: string, newest: string | undefined, live: ReadonlySet<string>): Promise<void> {
    const since = newest === undefined ? 0 : (uuidTime(newest) ?? 0);
    const { begun, ended } = await listRunNames(this.#repository, source, this.#signal);
    const [last] = begun.filter((run) => (uuidTime(run) ?? 0) > since).slice(-1);
    if (last === undefined) return;
    if (!this.#readable) {
      if (!ended.has(last) && !live.has(last)) this.#died(source, last);
      return;
    }
    const runs = await listRuns(this.#repository, source, RUNS_READ, this.#signal);
    const backup = runs.findLast(
      ({ begin }) => begin.purpose === "backup" && (uuidTime(begin.run) ?? 0) > since,
    );
    if (backup === undefined) return;
    if (backup.end === undefined) {
      if (!live.has(backup.begin.run)) this.#died(source, backup.begin.run);
    } else if (backup.end.outcome === "failed") {
      const { code = "", message = "" } = backup.end.error ?? {};
      this.#add("failed", source, `The latest backup of ${source} failed: ${message} (${code})`);
    }
  }

  #died(source: string, run: string): void {
    const at = new Date(uuidTime(run) ?? 0).toISOString();
    this.#add(
      "died",
      source,
      `The backup of ${source} that began at ${at} ended without a word: its process died`,
    );
  }

  async #uploads(): Promise<void> {
    let count = 0;
    for await (const { initiated } of this.#repository.store.listUploads(Prefix.packs, this.#signal)) {
      if (this.#nowMs - initiated.getTime() > UPLOAD_STALE_MS) count++;
    }
    if (count === 0) return;
    const message = `${count} uploads to ${this.#name} were begun and never ended; the next backup removes them, and a lifecycle rule should`;
    this.#add("uploads", "", message);
  }

  async #damaged(): Promise<void> {
    const packs = new Set<string>();
    for await (const { key } of this.#repository.store.list(Prefix.damaged, this.#signal)) {
      const name = parseKey(key);
      if (name?.type === "damaged") packs.add(name.pack);
    }
    if (packs.size === 0) return;
    const message = `${packs.size} packs of ${this.#name} are recorded as damaged; run blockhaul verify, which says what is lost and what to do`;
    this.#add("damaged", "", message);
  }
}

/** "26 h", "3 d": for people. */
function spanText(ms: number): string {
  if (ms < 2 * 60_000) return `${Math.round(ms / 1000)} s`;
  if (ms < 2 * HOUR_MS) return `${Math.round(ms / 60_000)} min`;
  return ms < 72 * HOUR_MS ? `${Math.round(ms / HOUR_MS)} h` : `${Math.round(ms / (24 * HOUR_MS))} d`;
}
