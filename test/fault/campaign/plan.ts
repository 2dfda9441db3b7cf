import { MiB } from "../../../src/bytes/size.ts";
import { seeded } from "../../support/seeded.ts";
import { NBD_FAULTS, type NbdRule } from "./nbd-proxy.ts";
import { REQUEST_CLASSES, S3_FAULTS, type S3FaultKind, type S3Rule } from "./s3-faults.ts";
import { VERBS, type VerbName } from "./verbs.ts";

export const SOURCES = ["alpha", "beta"] as const;
export type SourceName = (typeof SOURCES)[number];

/** How a run is ended from outside, if it is. */
export interface StopPlan {
  readonly signal: "SIGKILL" | "SIGINT";
  /** After so many milliseconds, unless the run has ended by then. */
  readonly afterMs: number;
}

/** What is too small for a run, and by how much: bytes that still fit. */
export interface FullPlan {
  readonly what: "every file" | "cache and target" | "repository";
  readonly bytes: number;
}

/** One run of the program, and what happens to it. */
export interface RunPlan {
  readonly verb: VerbName;
  readonly source: SourceName;
  /** Which generation, of those there are then. */
  readonly pick: number;
  /** Which of the caches. */
  readonly host: number;
  /** Milliseconds after the round's start. */
  readonly startMs: number;
  readonly s3: readonly S3Rule[];
  readonly nbd: readonly NbdRule[];
  readonly stop: StopPlan | undefined;
  readonly full: FullPlan | undefined;
}

export interface RoundPlan {
  /** Sources whose disks are changed before, with how many writes. */
  readonly changes: Readonly<Record<SourceName, number>>;
  /** A source whose disk gets another size. */
  readonly resized: SourceName | undefined;
  readonly runs: readonly RunPlan[];
}

/** A repository's life: where it is, and how many rounds it lasts. */
export interface LifePlan {
  readonly kind: "directory" | "bucket";
  readonly encrypted: boolean;
  /** Whether prunes run in it, whose grace is short: no clock is off by more then. */
  readonly prunes: boolean;
  readonly rounds: number;
}

type Random = (below: number) => number;

const HOSTS = 2;
/** Within which of these a run is stopped, milliseconds: its time to start is long on a busy machine. */
const STOP_MS = [1500, 3000, 6000, 12_000];
const ROUNDS_MAX = 100;

/** The same for the same seed and number: all four kinds come in any four lives that follow each other. */
export function planLife(seed: number, life: number): LifePlan {
  const kind = (seed + life) % 4;
  const random = seeded(mixed(seed, life, 1));
  const prunes = random(3) > 0;
  return {
    kind: kind % 2 === 0 ? "bucket" : "directory",
    encrypted: kind >= 2,
    prunes,
    rounds: (prunes ? 9 : 6) + random(7),
  };
}

/** The same for the same seed and numbers. */
export function planRound(seed: number, life: number, number: number): RoundPlan {
  const { prunes } = planLife(seed, life);
  const round = life * ROUNDS_MAX + number;
  const random = seeded(mixed(seed, round, 2));
  const runs = Array.from({ length: 2 + random(3) }, () => planRun(random, prunes));
  return {
    changes: { alpha: random(4), beta: random(4) },
    resized: random(6) === 0 ? SOURCES[random(SOURCES.length)]! : undefined,
    runs,
  };
}

function planRun(random: Random, prunes: boolean): RunPlan {
  const troubled = random(8) > 0; // some run beside the troubled ones, and must not be drawn in
  const times = (most: number): number => (troubled ? 1 + random(most) : 0);
  const verb = pickVerb(random, prunes);
  const clocks = !prunes;
  const reads = verb !== "backup";
  return {
    verb,
    source: SOURCES[random(SOURCES.length)]!,
    pick: random(1000),
    host: random(HOSTS),
    startMs: random(2) === 0 ? 0 : random(1500),
    s3: Array.from({ length: times(9) }, () => planS3(random, reads, clocks)),
    nbd: Array.from({ length: times(3) }, () => planNbd(random)),
    stop:
      troubled && random(4) === 0
        ? {
            signal: random(4) === 0 ? "SIGINT" : "SIGKILL",
            afterMs: 300 + random(STOP_MS[random(STOP_MS.length)]!),
          }
        : undefined,
    full: troubled && random(7) === 0 ? planFull(random) : undefined,
  };
}

function planS3(random: Random, reads: boolean, clocks: boolean): S3Rule {
  const picked = pickS3Fault(random);
  const kind = picked === "clock" && !clocks ? "delay" : picked;
  const classes = REQUEST_CLASSES.filter(({ fits, ofReaders }) => fits(kind) && (ofReaders || !reads));
  const { name } = classes[random(classes.length)]!;
  return {
    kind,
    on: name,
    nth: random(name === "any" ? 25 : name === "get" ? 8 : name === "get pack" ? 4 : 2),
    every: random(5) === 0 && canRepeat(kind) ? 2 + random(6) : undefined,
    value: random(1_000_000),
  };
}

/** Whatever comes after a kill or a stall does not come, or comes late: they are rarer than the others. */
function pickS3Fault(random: Random): S3FaultKind {
  const kind = S3_FAULTS[random(S3_FAULTS.length)]!;
  const rare = kind.startsWith("kill") || kind === "stall";
  return rare && random(3) > 0 ? S3_FAULTS[random(S3_FAULTS.length)]! : kind;
}

/** Faults that a run survives however often they come, if not all its requests have them. */
function canRepeat(kind: S3FaultKind): boolean {
  return kind !== "stall" && kind !== "kill before" && kind !== "kill after" && kind !== "clock";
}

function planNbd(random: Random): NbdRule {
  const kind = NBD_FAULTS[random(NBD_FAULTS.length)]!;
  return { kind, nth: random(4) === 0 ? random(12) : 12 + random(30), value: random(1_000_000) };
}

function planFull(random: Random): FullPlan {
  const what = (["every file", "cache and target", "repository"] as const)[random(3)]!;
  return { what, bytes: random(3) === 0 ? random(64 * 1024) : random(3 * MiB) };
}

function pickVerb(random: Random, prunes: boolean): VerbName {
  const names = (Object.keys(VERBS) as VerbName[]).filter((name) => prunes || name !== "prune");
  const total = names.reduce((sum, name) => sum + VERBS[name].weight, 0);
  let left = random(total);
  return names.find((name) => (left -= VERBS[name].weight) < 0)!;
}

/** Seeds that are far from each other for numbers that are not. */
function mixed(seed: number, number: number, use: number): number {
  return (Math.imul(seed, 0x9e3779b1) ^ Math.imul(number + 1, 0x85ebca6b) ^ Math.imul(use, 0xc2b2ae35)) >>> 0;
}
