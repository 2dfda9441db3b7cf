import { expect } from "vitest";
import type { BackupReport } from "../../src/backup/request.ts";
import { decodeForward } from "../../src/repository/forward.ts";
import { parseKey, packKey } from "../../src/repository/names.ts";
import type { RewriteLimits } from "../../src/upkeep/prune/rewrite-limits.ts";
import type { PruneReport } from "../../src/upkeep/prune/prune-report.ts";
import { diskOf, expectSame, newBackups, numbers } from "../unit/backup/chunks.ts";
import { forgetThem, forward, HOUR, runPrune } from "./prunes.ts";

export type TestBackups = Awaited<ReturnType<typeof newBackups>>;

/** A repository, and what each of its generations must restore to. */
export interface ThinRepository {
  readonly backups: TestBackups;
  readonly contents: Map<string, readonly number[]>;
}

/** Everything that is worth it. */
export const ALL: RewriteLimits = { maxUnused: 0, maxRepackBytes: Infinity };

export function keysOf(backups: TestBackups, prefix: string): string[] {
  return [...backups.store.objects.keys()].filter((key) => key.startsWith(prefix));
}

/** Fails the test on a warning. */
export async function rewriteAll(backups: TestBackups, limits: RewriteLimits = ALL): Promise<PruneReport> {
  return await runPrune(backups.repository, { rewrite: limits });
}

/** Every generation, byte for byte. */
export async function expectAllRestore(
  backups: TestBackups,
  contents: ReadonlyMap<string, readonly number[]>,
): Promise<void> {
  const generations = await backups.generations();
  expect(generations.map(({ generation }) => generation).sort()).toEqual([...contents.keys()].sort());
  for (const { generation, disks } of generations)
    expectSame(await backups.restore(disks[0]!), diskOf(contents.get(generation)!).bytes);
}

const OLD = numbers(1, 13);
/** Of each pack of four chunks of `OLD` the first one. */
export const NEW = [1, 31, 32, 33, 5, 34, 35, 36, 9, 37, 38, 39];

/** Three packs of which one slot in four is live, and one full pack and more of the generation that uses them. */
export async function thinPacks(
  encrypted = false,
): Promise<ThinRepository & { readonly thin: readonly string[]; readonly second: BackupReport }> {
  const backups = await newBackups({ packChunks: 5, encrypted });
  const first = await backups.backup([diskOf(OLD)]);
  const thin = keysOf(backups, "packs/");
  forward(HOUR);
  const second = await backups.backup([diskOf(NEW)], { full: true });
  expect(second.stats.chunksDeduplicated).toBe(3);
  await forgetThem(backups.repository, "web", [first.manifest.generation]);
  forward(25 * HOUR);
  const contents = new Map<string, readonly number[]>([[second.manifest.generation, NEW]]);
  return { backups, thin, second, contents };
}

/** A forwarded pack whose new pack becomes thin itself. */
export async function thinAgain(): Promise<ThinRepository & { readonly first: string }> {
  const { backups, second, contents } = await thinPacks();
  await rewriteAll(backups);
  forward(25 * HOUR);
  await rewriteAll(backups);
  const targets = (key: string): boolean => parseKey(key)?.type === "pack";
  const [first] = keysOf(backups, "packs/").filter(targets).slice(-1);
  const { manifest } = await backups.backup([diskOf([...numbers(50, 54), 5])], { full: true, source: "db" });
  contents.set(manifest.generation, [...numbers(50, 54), 5]);
  const chunks = [9, ...numbers(60, 64)];
  const third = await backups.backup([diskOf(chunks)]);
  contents.set(third.manifest.generation, chunks);
  await forgetThem(backups.repository, "web", [second.manifest.generation]);
  contents.delete(second.manifest.generation);
  forward(25 * HOUR);
  return { backups, first: first!, contents };
}

/** Every pack is one that layers or forwards lead to, and every forward leads there. */
export async function expectNothingLeft(backups: TestBackups): Promise<void> {
  const report = await runPrune(backups.repository, { dryRun: true, rewrite: ALL });
  expect(report).toMatchObject({
    condemned: { packs: 0, layers: 0, bytes: 0 },
    deleted: { packs: 0, layers: 0, bytes: 0 },
    waiting: { packs: 0, layers: 0 },
    kept: { packs: 0, layers: 0 },
    young: { packs: 0, layers: 0 },
    rewritten: { packs: 0 },
  });
  expect(report.live.packs).toBe(keysOf(backups, "packs/").length);
  const forwards = keysOf(backups, "forwards/");
  const packs = new Set<string>();
  for (const key of forwards) {
    const { pack } = parseKey(key) as { readonly pack: string };
    expect(backups.store.objects.has(packKey(pack)), "it is there, and yet has a forward").toBe(false);
    packs.add(pack);
    const { ways } = decodeForward(backups.repository, key, backups.store.bytes(key));
    for (const target of ways.targets)
      expect(backups.store.objects.has(packKey(target.pack)), "a forward leads on to another").toBe(true);
  }
  expect(packs.size, "a pack has one forward").toBe(forwards.length);
}

/**
 * A pack that a layer still names, gone, and the new pack that its forward leads to thin itself: of its three slots one is
 * in use, and by that forward alone.
 */
export async function chainedPacks(): Promise<ThinRepository> {
  const { backups, second } = await thinPacks();
  await rewriteAll(backups);
  const chunks = [1, ...numbers(70, 81)];
  const third = await backups.backup([diskOf(chunks)]);
  expect(third.stats.chunksUnchanged, "its layer names the first old pack").toBe(1);
  await forgetThem(backups.repository, "web", [second.manifest.generation]);
  forward(25 * HOUR);
  return { backups, contents: new Map([[third.manifest.generation, chunks]]) };
}
