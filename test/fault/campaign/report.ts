import type { RunPlan } from "./plan.ts";
import type { RunOutcome } from "./troubled-run.ts";

/** What a campaign has done and found, so far. */
export class Report {
  readonly losses: string[] = [];
  readonly problems: string[] = [];
  readonly #planned = new Map<string, number>();
  readonly #hit = new Map<string, number>();
  readonly #runs = new Map<string, number>();
  readonly #startedMs = performance.now();
  #rounds = 0;
  #lives = 0;
  #uploads = 0;
  #generations = 0;

  lose(what: string): void {
    this.losses.push(what);
  }

  problem(what: string): void {
    this.problems.push(what);
  }

  round(outcomes: readonly RunOutcome[]): void {
    this.#rounds++;
    for (const { plan, hits, result } of outcomes) {
      for (const kind of plannedKinds(plan)) count(this.#planned, kind);
      for (const kind of hits) count(this.#hit, kind);
      count(this.#runs, `${plan.verb} ${result.code ?? result.signal}`);
    }
  }

  /** Uploads that troubled runs have left, for the next ones to clear away. */
  leftUploads(count: number): void {
    this.#uploads += count;
  }

  /** A life is over, and its generations were all restored. */
  ended(generations: number): void {
    this.#lives++;
    this.#generations += generations;
  }

  /** How many faults struck a run that was under way. */
  get faultsHit(): number {
    return sum(this.#hit);
  }

  /** One JSON document on a line. */
  toString(): string {
    return JSON.stringify({
      minutes: Math.round((performance.now() - this.#startedMs) / 6000) / 10,
      lives: this.#lives,
      rounds: this.#rounds,
      generations: this.#generations,
      runs: Object.fromEntries([...this.#runs].sort()),
      uploadsLeft: this.#uploads,
      planned: Object.fromEntries([...this.#planned].sort()),
      hit: Object.fromEntries([...this.#hit].sort()),
      faultsHit: this.faultsHit,
      problems: this.problems.length,
      losses: this.losses,
    });
  }

  /** For people. */
  table(): string {
    const kinds = [...new Set([...this.#planned.keys(), ...this.#hit.keys()])].sort();
    const lines = kinds.map(
      (kind) =>
        `${kind.padEnd(24)} ${String(this.#planned.get(kind) ?? 0).padStart(8)} ${String(this.#hit.get(kind) ?? 0).padStart(8)}`,
    );
    const runs = [...this.#runs]
      .sort()
      .map(([what, times]) => `${what.padEnd(24)} ${String(times).padStart(8)}`);
    return [
      `${this.#rounds} rounds in ${this.#lives} repositories, ${this.#generations} generations restored at their end`,
      `${this.#uploads} uploads were left by troubled runs, and had to be gone after the next`,
      "",
      `${"FAULT".padEnd(24)}  PLANNED      HIT`,
      ...lines,
      "",
      `${"RUN AND HOW IT ENDED".padEnd(24)}    TIMES`,
      ...runs,
      "",
      `problems: ${this.problems.length}, losses: ${this.losses.length}`,
    ].join("\n");
  }
}

/** A rule that repeats counts once; what a directory cannot meet is planned, and never hit. */
function plannedKinds({ s3, nbd, stop, full }: RunPlan): string[] {
  return [
    ...s3.map(({ kind }) => `s3 ${kind}`),
    ...nbd.map(({ kind }) => `nbd ${kind}`),
    ...(stop === undefined ? [] : [stop.signal]),
    ...(full === undefined ? [] : [`full ${full.what}`]),
  ];
}

function count(counts: Map<string, number>, what: string): void {
  counts.set(what, (counts.get(what) ?? 0) + 1);
}

function sum(counts: ReadonlyMap<string, number>): number {
  return [...counts.values()].reduce((total, times) => total + times, 0);
}
