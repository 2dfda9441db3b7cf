import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { messageOf } from "../../../src/errors.ts";
import { runCli, type CliResult } from "../../support/cli.ts";
import { seeded } from "../../support/seeded.ts";
import { makeFolder, removeFolder } from "./full.ts";
import { NbdProxy } from "./nbd-proxy.ts";
import { Place } from "./place.ts";
import { planLife, planRound, SOURCES, type RoundPlan, type SourceName } from "./plan.ts";
import type { Report } from "./report.ts";
import { newFacts, type RoundFacts } from "./round-facts.ts";
import { S3Proxy } from "./s3-proxy.ts";
import { runTroubled, type RunOutcome } from "./troubled-run.ts";
import { listedIn, PRUNE_ARGS, PRUNE_PROGRAM } from "./verbs.ts";
import { openWorld, type World } from "./world.ts";

/** Of a life's generations this many are restored after each round, besides the newest of each source; all at its end. */
const SAMPLE = 3;
/** As long as a dead run's lease counts where its death cannot be seen. */
const LEASE_MS = 121_000;

export interface CampaignOptions {
  readonly seed: number;
  /** When no new round begins, milliseconds of `performance.now()`. */
  readonly untilMs: number;
  /** A campaign from this life on: to look at one again. */
  readonly firstLife: number;
  readonly stop: AbortSignal;
  readonly report: Report;
  /** Takes one line for each thing that happens. */
  readonly say: (line: string) => void;
}

/** Lives of repositories, one after the other, until the time is over or a generation was lost. */
export async function runCampaign(options: CampaignOptions): Promise<void> {
  const world = await openWorld();
  try {
    for (let life = options.firstLife; goesOn(options); life++) await new Life(options, world, life).live();
  } finally {
    await world.minio.stop();
  }
}

function goesOn({ stop, untilMs, report }: CampaignOptions): boolean {
  return !stop.aborted && performance.now() < untilMs && report.losses.length === 0;
}

/** One repository from its first round to its end. */
class Life {
  readonly #options: CampaignOptions;
  readonly #world: World;
  readonly #life: number;
  readonly #random: (below: number) => number;
  readonly #folder = makeFolder("campaign");
  #round = 0;

  constructor(options: CampaignOptions, world: World, life: number) {
    this.#options = options;
    this.#world = world;
    this.#life = life;
    this.#random = seeded(options.seed * 1009 + life);
  }

  async live(): Promise<void> {
    const { seed, report } = this.#options;
    const plan = planLife(seed, this.#life);
    const place = await Place.make(plan, this.#world, this.#folder, this.#random);
    const before = report.losses.length;
    try {
      this.#say(`life ${this.#life}: ${place.describe}${plan.prunes ? ", pruned" : ""}`);
      await this.#backUpAllInPeace(place);
      for (; this.#round < plan.rounds && goesOn(this.#options); this.#round++) await this.#playRound(place);
      await this.#end(place);
    } finally {
      await place.close();
      if (report.losses.length === before) removeFolder(this.#folder);
      else this.#say(`kept: ${this.#folder}`);
    }
  }

  async #playRound(place: Place): Promise<void> {
    const { report, seed } = this.#options;
    const plan = planRound(seed, this.#life, this.#round);
    const startedMs = performance.now();
    await this.#changeDisks(place, plan);
    const facts = newFacts(plan);
    const narrow = plan.runs.find(({ full }) => full?.what === "repository")?.full;
    if (narrow !== undefined) place.room?.leave(narrow.bytes);
    const outcomes = (
      await Promise.all(plan.runs.map((_, index) => this.#oneRun(place, plan, index, facts)))
    ).filter((outcome) => outcome !== undefined);
    place.room?.resize(1024 ** 3);
    for (const outcome of outcomes) this.#tell(outcome);
    report.leftUploads((await place.leftUploads()).length);
    const lost = await this.#afterwards(place, facts);
    for (const what of lost) this.#lose(what, outcomes);
    report.round(outcomes);
    this.#say(
      `round ${this.#round}: ${outcomes.map(({ plan: { verb }, result, hits }) => `${verb} ${result.code ?? result.signal} [${hits.join(", ")}]`).join("; ")}; ` +
        `${place.committed.size} generations, ${((performance.now() - startedMs) / 1000).toFixed(1)} s`,
    );
  }

  async #changeDisks(place: Place, plan: RoundPlan): Promise<void> {
    for (const source of SOURCES) {
      if (plan.resized === source) await place.disks.get(source)!.resize();
      await place.disks.get(source)!.change(plan.changes[source]);
    }
  }

  async #oneRun(
    place: Place,
    plan: RoundPlan,
    index: number,
    facts: RoundFacts,
  ): Promise<RunOutcome | undefined> {
    const { stop } = this.#options;
    await delay(plan.runs[index]!.startMs, undefined, { signal: stop }).catch(() => undefined);
    if (stop.aborted) return undefined;
    return await runTroubled(place, plan.runs[index]!, facts, `run-${this.#round}-${index}`, stop);
  }

  /** In peace again: what must be there is there and right, and nothing is stuck. @returns what is lost. */
  async #afterwards(place: Place, facts: RoundFacts): Promise<string[]> {
    const lost = await this.#compareList(place, facts);
    lost.push(...(await this.#backUpAllInPeace(place)));
    if (place.life.prunes) await this.#pruneInPeace(place);
    const left = await place.leftovers();
    if (left.length > 0) {
      // S3 dates uploads to the second: what a killed run began within the last one goes with the run after that
      await delay(1100);
      lost.push(...(await this.#backUpAllInPeace(place)));
      for (const key of await place.leftovers()) this.#problem(`${key} is left behind`);
    }
    for (const id of this.#sample(place)) {
      const wrong = await place.check(id);
      if (wrong !== undefined) lost.push(wrong);
    }
    return lost;
  }

  /** Learns which generations have come and gone. */
  async #compareList(place: Place, facts: RoundFacts): Promise<string[]> {
    const result = await this.#inPeace(place, undefined, () => ["list", "--json"]);
    if (result.code !== 0) return [`list ended with ${result.code}: ${result.stderr}`];
    const listed = new Set(listedIn(result.stdout));
    const lost: string[] = [];
    for (const id of place.committed.keys()) {
      if (listed.has(id)) continue;
      if (!facts.forgotten.has(id) && !facts.mayGo.has(id)) lost.push(`${id} is not listed any more`);
      place.forget(id);
    }
    for (const id of facts.reported) {
      if (!listed.has(id) && !facts.forgotten.has(id)) lost.push(`${id} was reported, but is not listed`);
    }
    for (const id of facts.forgotten) {
      if (listed.has(id) && !facts.restored.has(id) && !facts.mayCome.has(id))
        this.#problem(`${id} is listed after it was forgotten`);
    }
    for (const { generation, source } of sourcesIn(result.stdout)) {
      if (place.committed.has(generation)) continue;
      if (place.forgotten.has(generation)) {
        if (!facts.mayCome.has(generation)) this.#problem(`${generation} has come back by itself`);
        place.bringBack(generation);
        continue;
      }
      if (!facts.backedUp.has(source)) lost.push(`${generation} of ${source} has come from nowhere`);
      place.committed.set(generation, { source, picture: await place.disks.get(source)!.picture() });
    }
    return lost;
  }

  async #backUpAllInPeace(place: Place): Promise<string[]> {
    return (await Promise.all(SOURCES.map((source) => this.#backUpInPeace(place, source)))).flat();
  }

  /** A backup without any fault, which must succeed at once: all who held leases are dead, and known to be. */
  async #backUpInPeace(place: Place, source: SourceName): Promise<string[]> {
    const startedMs = performance.now();
    for (;;) {
      const result = await this.#inPeace(place, source, (uri) => ["backup", uri, "--name", source, "--json"]);
      if (result.code === 0) {
        const { generation } = JSON.parse(result.stdout) as { generation: string };
        place.committed.set(generation, { source, picture: await place.disks.get(source)!.picture() });
        return [];
      }
      this.#problem(`a backup in peace ended with ${result.code ?? result.signal}: ${result.stderr.trim()}`);
      const late = performance.now() - startedMs > LEASE_MS;
      if (late || result.code !== 11) return late ? [`backups of ${source} are stuck`] : [];
      await delay(5000);
    }
  }

  async #pruneInPeace(place: Place): Promise<void> {
    const result = await this.#inPeace(place, undefined, () => PRUNE_ARGS, PRUNE_PROGRAM);
    if (result.code !== 0)
      this.#problem(`a prune in peace ended with ${result.code ?? result.signal}: ${result.stderr.trim()}`);
  }

  async #inPeace(
    place: Place,
    source: SourceName | undefined,
    args: (uri: string) => readonly string[],
    program?: string,
  ): Promise<CliResult> {
    const { minio, uploads } = this.#world;
    const s3 = place.life.kind === "bucket" ? await S3Proxy.open(minio.endpoint, [], uploads) : undefined;
    const nbd = source === undefined ? undefined : await NbdProxy.open(place.disks.get(source)!.socket, []);
    const cache = join(place.folder, "cache-peace");
    await mkdir(cache, { recursive: true });
    try {
      return await runCli([...args(nbd?.uri(source!) ?? ""), "-r", place.location, "--cache-dir", cache], {
        env: place.environment(s3?.endpoint),
        ...(program !== undefined && { program }),
      });
    } finally {
      await s3?.close();
      await nbd?.close();
    }
  }

  #sample(place: Place): string[] {
    const newest = SOURCES.flatMap((source) => place.known(source).slice(-2));
    const all = [...place.committed.keys()];
    return [...newest, ...Array.from({ length: SAMPLE }, () => all[this.#random(all.length)]!)];
  }

  /** All generations, and the program's own word on them. */
  async #end(place: Place): Promise<void> {
    for (const id of place.committed.keys()) {
      const wrong = await place.check(id);
      if (wrong !== undefined) this.#lose(wrong, []);
    }
    const result = await this.#inPeace(place, undefined, () => ["verify", "--read-data"]);
    if (result.code !== 0)
      this.#lose(`verify ended with ${result.code}: ${result.stderr}${result.stdout}`, []);
    this.#options.report.ended(place.committed.size);
  }

  #tell(outcome: RunOutcome): void {
    const { plan, result, hits, problems, requests } = outcome;
    for (const problem of problems) {
      const what = `${plan.verb} of ${plan.source} [${hits.join(", ")}]: ${problem}\n${result.stderr.trim()}`;
      if (problem.startsWith("LOSS")) this.#lose(what, [outcome]);
      else this.#problem(what);
      this.#say(`  plan ${JSON.stringify(plan)}\n  ${requests.slice(-40).join("\n  ")}`);
    }
  }

  #problem(what: string): void {
    this.#options.report.problem(`${this.#where()}: ${what}`);
    this.#say(`PROBLEM ${this.#where()}: ${what}`);
  }

  #lose(what: string, outcomes: readonly RunOutcome[]): void {
    this.#options.report.lose(`${this.#where()}: ${what}`);
    this.#say(`LOSS ${this.#where()}: ${what}; folder ${this.#folder}`);
    for (const { plan, result, hits, requests } of outcomes) {
      this.#say(`  ${JSON.stringify(plan)}\n  ${result.code ?? result.signal} [${hits.join(", ")}]`);
      this.#say(`  ${messageOf(result.stderr)}\n  ${requests.join("\n  ")}`);
    }
  }

  #where(): string {
    return `seed ${this.#options.seed}, life ${this.#life}, round ${this.#round}`;
  }

  #say(line: string): void {
    this.#options.say(line);
  }
}

function sourcesIn(stdout: string): { generation: string; source: SourceName }[] {
  return (JSON.parse(stdout) as { generations: { generation: string; source: SourceName }[] }).generations;
}
