import { existsSync } from "node:fs";
import { readFile, truncate, writeFile } from "node:fs/promises";
import { hash } from "node:crypto";
import { join } from "node:path";
import type { CliResult } from "../../support/cli.ts";
import { startQemuNbd } from "../../support/qemu-nbd.ts";
import type { Picture } from "./disks.ts";
import type { Place } from "./place.ts";
import type { RunPlan } from "./plan.ts";
import type { RoundFacts } from "./round-facts.ts";

/** A run of the program that is about to begin. */
export interface VerbRun {
  /** The NBD server it talks to, if any. */
  readonly nbd: { readonly socket: string; readonly name: string } | undefined;
  /** @param uri that server's, behind the proxy. */
  readonly args: (uri: string) => readonly string[];
  /** Holds the outcome against what is known. @returns what is wrong. */
  readonly judge: (result: CliResult) => Promise<string[]>;
  /** What is run in place of the program itself. */
  readonly program?: string;
  /** Exit codes that it may end with besides those its faults explain. */
  readonly codes: readonly number[];
  readonly close: () => Promise<void>;
}

interface Verb {
  /** How often it is chosen, in comparison. */
  readonly weight: number;
  /** @param folder of its own, for what it writes. @returns undefined when there is nothing to do it with. */
  readonly start: (
    place: Place,
    plan: RunPlan,
    facts: RoundFacts,
    folder: string,
  ) => Promise<VerbRun | undefined>;
}

export type VerbName =
  "backup" | "restore" | "restore over NBD" | "forget" | "restore-generation" | "prune" | "verify" | "list";

/** A new verb is one entry here. */
export const VERBS: Readonly<Record<VerbName, Verb>> = {
  backup: { weight: 14, start: startBackup },
  restore: { weight: 4, start: startRestore },
  "restore over NBD": { weight: 2, start: startRestoreOverNbd },
  forget: { weight: 3, start: startForget },
  "restore-generation": { weight: 2, start: startRestoreGeneration },
  prune: { weight: 5, start: startPrune },
  verify: { weight: 2, start: startVerify },
  list: { weight: 1, start: startList },
};

/** Seconds: a life lasts minutes, and what is forgotten in it is to go within it. */
const PRUNE_GRACE_MS = 60_000;
export const PRUNE_PROGRAM = join(import.meta.dirname, "prune-process.ts");
export const PRUNE_ARGS = ["prune", "--grace-ms", `${PRUNE_GRACE_MS}`];

/** Forgetting spares these newest ones of a source at least, whatever other runs commit meanwhile. */
const COMMITS_A_ROUND = 4;

const nothing = (): Promise<void> => Promise.resolve();
const fine = (): Promise<string[]> => Promise.resolve([]);

function startBackup(place: Place, plan: RunPlan, facts: RoundFacts): Promise<VerbRun> {
  const { source } = plan;
  const full = plan.pick % 9 === 0 ? ["--full"] : [];
  facts.backedUp.add(source);
  return Promise.resolve({
    nbd: { socket: place.disks.get(source)!.socket, name: source },
    args: (uri) => ["backup", uri, "--name", source, ...full, "--json"],
    judge: ({ code, stdout }) => {
      if (code === 0) facts.reported.push((JSON.parse(stdout) as { generation: string }).generation);
      return Promise.resolve([]);
    },
    codes: [],
    close: nothing,
  });
}

async function startRestore(
  place: Place,
  plan: RunPlan,
  facts: RoundFacts,
  folder: string,
): Promise<VerbRun | undefined> {
  const id = pickGeneration(place, plan);
  if (id === undefined) return undefined;
  facts.restored.add(id);
  const { picture } = place.committed.get(id)!;
  const target = join(folder, "restored.raw");
  return Promise.resolve({
    nbd: undefined,
    args: () => ["restore", id, "--to", target],
    judge: async ({ code }) => {
      if (code === 0) return await expectPicture(target, picture, id);
      return existsSync(target)
        ? [`a restore of ${id} that ended with ${code} left a file under its name`]
        : [];
    },
    codes: facts.forgets ? [10] : [],
    close: nothing,
  });
}

async function startRestoreOverNbd(
  place: Place,
  plan: RunPlan,
  facts: RoundFacts,
  folder: string,
): Promise<VerbRun | undefined> {
  const id = pickGeneration(place, plan);
  if (id === undefined) return undefined;
  facts.restored.add(id);
  const { picture } = place.committed.get(id)!;
  const target = join(folder, "target.raw");
  await writeFile(target, Buffer.alloc(picture.size, 0xa5));
  await truncate(target, picture.size);
  const server = await startQemuNbd(["--format=raw", target], { exportName: "target" });
  return {
    nbd: { socket: server.socket, name: "target" },
    args: (uri) => ["restore", id, "--to", uri],
    judge: async ({ code }) => (code === 0 ? await expectPicture(target, picture, id) : []),
    codes: facts.forgets ? [10] : [],
    close: () => server.stop(),
  };
}

function startForget(place: Place, plan: RunPlan, facts: RoundFacts): Promise<VerbRun> {
  const keep = COMMITS_A_ROUND + 1 + (plan.pick % 3);
  const atStart = place.known(plan.source);
  return Promise.resolve({
    nbd: undefined,
    args: () => ["forget", "--source", plan.source, "--keep-last", `${keep}`, "--json"],
    judge: ({ code, stdout }) => {
      const gone =
        code === 0
          ? removedOf(stdout).filter((id) => place.committed.has(id) || facts.backedUp.has(plan.source))
          : atStart.slice(0, Math.max(0, atStart.length - (keep - COMMITS_A_ROUND)));
      for (const id of gone) (code === 0 ? facts.forgotten : facts.mayGo).add(id);
      const spared = new Set(atStart.slice(-(keep - COMMITS_A_ROUND)));
      return Promise.resolve(
        gone.filter((id) => spared.has(id)).map((id) => `${id} was forgotten against the rule`),
      );
    },
    codes: [10],
    close: nothing,
  });
}

function startRestoreGeneration(
  place: Place,
  plan: RunPlan,
  facts: RoundFacts,
): Promise<VerbRun | undefined> {
  const ids = [...place.forgotten.keys()];
  const id = ids[plan.pick % Math.max(1, ids.length)];
  if (id === undefined) return Promise.resolve(undefined);
  facts.mayCome.add(id);
  return Promise.resolve({
    nbd: undefined,
    args: () => ["restore-generation", id],
    judge: fine,
    codes: [10], // a prune may have cleared it away
    close: nothing,
  });
}

function startPrune(): Promise<VerbRun> {
  return Promise.resolve({
    nbd: undefined,
    program: PRUNE_PROGRAM,
    args: () => PRUNE_ARGS,
    judge: fine,
    codes: [],
    close: nothing,
  });
}

function startVerify(_place: Place, plan: RunPlan): Promise<VerbRun> {
  const data = ["--read-data", "--read-data=30%", undefined][plan.pick % 3];
  return Promise.resolve({
    nbd: undefined,
    args: () => ["verify", ...(data === undefined ? [] : [data])],
    judge: fine,
    codes: [],
    close: nothing,
  });
}

function startList(place: Place, _plan: RunPlan, facts: RoundFacts): Promise<VerbRun> {
  const known = [...place.committed.keys()];
  return Promise.resolve({
    nbd: undefined,
    args: () => ["list", "--json"],
    judge: ({ code, stdout }) => {
      if (code !== 0 || facts.forgets) return Promise.resolve([]);
      const listed = listedIn(stdout);
      return Promise.resolve(known.filter((id) => !listed.includes(id)).map((id) => `${id} is not listed`));
    },
    codes: [],
    close: nothing,
  });
}

/** Ids in the document of `list --json`. */
export function listedIn(stdout: string): string[] {
  const { generations } = JSON.parse(stdout) as { generations: { generation: string }[] };
  return generations.map(({ generation }) => generation);
}

function removedOf(stdout: string): string[] {
  const { sources } = JSON.parse(stdout) as { sources: { remove: { generation: string }[] }[] };
  return sources.flatMap(({ remove }) => remove.map(({ generation }) => generation));
}

function pickGeneration(place: Place, plan: RunPlan): string | undefined {
  const known = place.known(plan.source);
  return known[plan.pick % Math.max(1, known.length)];
}

async function expectPicture(path: string, picture: Picture, id: string): Promise<string[]> {
  const bytes = await readFile(path);
  const digest = hash("sha256", bytes);
  if (bytes.length === picture.size && digest === picture.digest) return [];
  return [
    `LOSS: a restore of ${id} exited with 0, but gave ${bytes.length} bytes, ${digest}, not ${picture.digest}`,
  ];
}
