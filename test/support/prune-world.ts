import { expect } from "vitest";
import type { ChunkWorkers } from "../../src/chunk/workers.ts";
import type { Extent } from "../../src/disk/disk.ts";
import { AppError, messageOf } from "../../src/errors.ts";
import { decodeForward, type Ways } from "../../src/repository/forward.ts";
import { loadGenerations } from "../../src/repository/generations.ts";
import { holdGeneration, releaseGeneration } from "../../src/repository/holds.ts";
import { DiskMap } from "../../src/repository/layer-stack.ts";
import type { StoredManifest } from "../../src/repository/manifest.ts";
import { forgottenKey, generationKey, layerKey, packKey, parseKey } from "../../src/repository/names.ts";
import { withPin } from "../../src/restore/pin.ts";
import type { ObjectStore } from "../../src/store/store.ts";
import type { PruneReport } from "../../src/upkeep/prune/prune-report.ts";
import { prune } from "../../src/upkeep/prune/prune.ts";
import { restoreGeneration } from "../../src/upkeep/restore-generation.ts";
import { restoreDisk } from "../../src/restore/restore-disk.ts";
import { Backups } from "./backups.ts";
import { memoryRepository } from "./memory-repository.ts";
import { DAY, HOUR, LOOKUP, forgetThem, forward } from "./prunes.ts";
import { noise } from "./random-disk.ts";
import { MemoryTarget, ScriptedDisk } from "./scripted-disk.ts";
import { SteppedActors, type Actor } from "./stepped-actors.ts";

const CHUNK = 64 * 1024;
const CHUNKS = 8;
const CONTENTS = 14;
const SOURCES = ["web", "db"];
/** No prune here has less, milliseconds. */
const GRACE_MIN = 2 * HOUR;
const LEASE_MS = 121_000;
const ACTORS_MAX = 4;

const never = new AbortController().signal;

/** How a program may end when others get in its way. */
const EXPECTED = new Set(
  [
    "E_LOCKED E_LEASE_LOST E_OVERTAKEN E_PRUNING E_CONDEMNED",
    "E_NO_GENERATION E_NOT_FORGOTTEN E_TOO_LATE E_NOT_HELD E_FORGET_HALF E_NO_OBJECT",
  ].flatMap((codes) => codes.split(" ")),
);

/**
 * Requests before which a program is made to wait while others come to their end: on one side of each it has looked at
 * something, or said something, that the rules make others heed.
 */
const WINDOWS: Readonly<Record<string, RegExp>> = {
  backup: /^(list (condemned|runs|index|generations)|beginUpload packs|put (index|layers|generations))/,
  prune:
    /^(put (condemned|forwards)|list (generations|runs|forgotten|condemned|forwards)|delete (packs|layers|forwards|forgotten))/,
  forget: /^(put forgotten|list runs|delete generations)/,
  restore: /^(put runs|get (generations|forwards|packs)|list forwards)/,
  return: /^(put generations|list condemned|get (forgotten|layers))/,
};

/** Who is let loose meanwhile: on those that need things, who removes them; on who removes them, those that need them. */
const RIVALS: Readonly<Record<string, readonly string[]>> = {
  backup: ["prune", "prune", "prune", "forget"],
  restore: ["prune", "prune", "forget"],
  return: ["prune", "prune", "forget"],
  forget: ["restore", "backup", "prune"],
  prune: ["backup", "backup", "backup", "return", "forget", "restore", "prune"],
};

/** How often each program is started, of twenty times. */
const SHARES = { backup: 7, prune: 5, forget: 3, restore: 2, return: 1, hold: 2 };

/** Requests of a rival, at most, before the other one goes on. */
const RIVAL_REQUESTS_MAX = 120;

type Random = (below: number) => number;

/** What a restore of a generation reads. */
interface Needs {
  readonly layers: readonly string[];
  /** Slots, by pack. */
  readonly packs: ReadonlyMap<string, ReadonlySet<number>>;
}

/**
 * A repository and the programs that work on it, one request at a time in random order: backups, forgets, holds,
 * restores, generations that are brought back, and prunes; any of them killed or stopped for days at any request,
 * while the clock goes on.
 */
export class PruneWorld {
  readonly outcomes: Record<string, number> = {};
  readonly #random: Random;
  readonly #repository = memoryRepository({ packSize: 4 * CHUNK, partSize: CHUNK });
  readonly #actors: SteppedActors;
  readonly #hosts: readonly Backups[];
  readonly #disks = new Map<string, number[]>();
  /** What each generation holds that was ever committed, and what its restore needs, once that is known. */
  readonly #truth = new Map<string, readonly number[]>();
  readonly #needs = new Map<string, Needs>();
  /** What forwards say, by key. */
  readonly #ways = new Map<string, Ways>();
  /** Committed by a backup that was presumed dead, or half brought back: nothing is promised of these. */
  readonly #doubtful = new Set<string>();
  readonly #returning = new Map<Actor, string>();
  readonly #leases = new Map<string, Actor>();
  /** Requests that somebody was seen to wait with. */
  readonly #seen = new WeakSet<object>();
  readonly #taking = new Map<Actor, readonly number[]>();
  #favorite: Actor | undefined;
  #failure: Error | undefined;
  /** Since the last check something was deleted, or a generation came. */
  #changed = true;

  constructor(random: Random, workers: ChunkWorkers, cacheDirs: readonly string[]) {
    this.#random = random;
    this.#actors = new SteppedActors(this.#repository.store, (actor, operation, key) =>
      this.#onRequest(actor, operation, key),
    );
    const watched = this.#actors.watched(workers);
    this.#hosts = cacheDirs.map((cacheDir) => Backups.with(this.#repository, cacheDir, watched));
    for (const source of SOURCES) this.#disks.set(source, this.#contents());
  }

  /**
   * Leaves packs that no generation needs, old enough to be condemned and listed for dedup: of a run that died. What
   * backups find there and prunes condemn meanwhile is what most rules are about.
   */
  async leaveDead(): Promise<void> {
    const { objects } = this.#repository.store;
    const before = new Set(objects.keys());
    const disk = new ScriptedDisk("vda", bytesOf(this.#contents()));
    const { manifest } = await this.#hosts[0]!.backup([disk], { source: "dead", full: true });
    objects.delete(generationKey("dead", manifest.generation));
    const old = new Date(Date.now() - 3 * DAY);
    for (const [key, { bytes }] of objects) {
      if (!before.has(key) && /^(packs|layers)\//.test(key)) objects.set(key, { bytes, lastModified: old });
    }
  }

  /** Lets one thing happen, and checks that no generation misses anything. */
  async step(): Promise<void> {
    const random = this.#random;
    const waiting = this.#atWindow();
    if (waiting !== undefined && random(4) === 0) {
      await this.#meanwhile(waiting);
      return;
    }
    const actors = [...this.#actors.all];
    const what = random(1000);
    if (actors.length === 0 || (what < 60 && actors.length < ACTORS_MAX)) this.#startAny();
    else if (what < 60) this.#releaseSome(actors);
    else if (what < 64) this.#kill(actors[random(actors.length)]!);
    else if (what < 76) this.#toggle(actors[random(actors.length)]!);
    else if (what < 79) await this.leaveDead();
    else if (what < 110) this.#forward([1000, 60_000, HOUR, 3 * HOUR, 5 * HOUR, 26 * HOUR][random(6)]!);
    else this.#releaseSome(actors);
    await this.#actors.settle();
    await this.check();
  }

  /** Lets everybody come to an end. */
  async finish(): Promise<void> {
    for (let idle = 0; this.#actors.all.size > 0 && idle < 200;) {
      for (const actor of this.#actors.all) actor.suspended = false;
      const waiting = [...this.#actors.all].filter(({ parked }) => parked.length > 0);
      const actor = waiting[this.#random(Math.max(1, waiting.length))];
      if (actor === undefined) {
        idle++; // a lease that waits for another's, by the clock on the wall
        await new Promise((resolve) => setTimeout(resolve, 20));
      } else this.#actors.release(actor, this.#random(actor.parked.length));
      await this.#actors.settle();
      await this.check();
    }
    expect(
      [...this.#actors.all].map(({ name }) => name),
      "all have ended",
    ).toEqual([]);
  }

  /** Every generation restores to what was backed up, and when nobody works, what is dead goes. */
  async expectWhole(): Promise<void> {
    await this.#expectRestores();
    const reports: PruneReport[] = [];
    for (let time = 0; time < 8; time++) {
      forward(13 * DAY);
      try {
        reports.push(await this.#prune(this.#repository.store, DAY, true));
      } catch (error) {
        if (this.#doubtful.size > 0) return; // what is broken stops it
        throw error;
      }
    }
    await this.#expectRestores();
    const { young, condemned, waiting, deleted } = reports.at(-1)!;
    for (const tally of [young, condemned, waiting, deleted])
      expect(tally).toMatchObject({ packs: 0, layers: 0, bytes: 0 });
    this.#expectForwardsNeeded();
    const kinds = new Set([...this.#repository.store.objects.keys()].map((key) => key.split("/")[0]));
    expect([...kinds].filter((kind) => kind === "leases" || kind === "forgotten")).toEqual([]);
  }

  /** A pack that was rewritten is gone, and its forwards lead straight to packs that are there; not all of what died since. */
  #expectForwardsNeeded(): void {
    const { objects } = this.#repository.store;
    for (const key of objects.keys()) {
      const name = parseKey(key);
      if (name?.type !== "forward") continue;
      expect(objects.has(packKey(name.pack)), key).toBe(false);
      const targets = this.#waysOf(key).targets.map((target) => packKey(target.pack));
      expect(
        targets.some((target) => objects.has(target)),
        key,
      ).toBe(true);
    }
  }

  /** Nothing that a listed generation needs has gone. Looks only when something was deleted, or came. */
  async check(): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    if (!this.#changed) return;
    this.#changed = false;
    const { objects } = this.#repository.store;
    for (const key of objects.keys()) {
      const name = parseKey(key);
      if (name?.type !== "generation" || this.#isDoubtful(name.generation)) continue;
      let needs = this.#needs.get(name.generation);
      if (needs === undefined)
        this.#needs.set(name.generation, (needs = await this.#needsOf(name.generation)));
      const layers = needs.layers.filter((one) => !objects.has(one));
      const packs = [...needs.packs].filter(([pack, slots]) => !this.#isReadable(pack, slots));
      const missing = [...layers, ...packs.map(([pack]) => packKey(pack))];
      if (missing.length > 0) throw new Error(`generation ${name.generation} has lost ${missing.join(", ")}`);
    }
  }

  #isDoubtful(generation: string): boolean {
    return this.#doubtful.has(generation) || [...this.#returning.values()].includes(generation);
  }

  async #needsOf(generation: string): Promise<Needs> {
    const all = await loadGenerations(this.#repository, undefined, never);
    const disks = all.find((one) => one.generation === generation)?.disks ?? [];
    const packs = new Map<string, Set<number>>();
    for (const disk of disks) {
      const map = await DiskMap.open(this.#repository, disk, never);
      for await (const { count, where } of map.runs(0, map.chunks, never)) {
        if (where === "zero") continue;
        const slots = packs.get(where.packRef.pack) ?? new Set();
        packs.set(where.packRef.pack, slots);
        for (let index = 0; index < count; index++) slots.add(where.slot + index);
      }
    }
    return { layers: disks.flatMap(({ layers }) => layers.map(({ layer }) => layerKey(layer))), packs };
  }

  /** Whether the slots are there, or forwards lead to where they are. */
  #isReadable(pack: string, slots: Iterable<number>): boolean {
    const { objects } = this.#repository.store;
    if (objects.has(packKey(pack))) return true;
    const forwards = [...objects.keys()].filter((key) => key.startsWith(`forwards/${pack}/`));
    const ways = forwards.map((key) => this.#waysOf(key));
    return [...slots].every((slot) =>
      ways.some((one) => {
        const place = one.placeOf(slot);
        return place !== undefined && this.#isReadable(place.target.pack, [place.slot]);
      }),
    );
  }

  #waysOf(key: string): Ways {
    let ways = this.#ways.get(key);
    if (ways === undefined) {
      ways = decodeForward(this.#repository, key, this.#repository.store.bytes(key)).ways;
      this.#ways.set(key, ways);
    }
    return ways;
  }

  async #expectRestores(): Promise<void> {
    for (const manifest of await loadGenerations(this.#repository, undefined, never)) {
      if (this.#isDoubtful(manifest.generation)) continue;
      const bytes = await this.#hosts[0]!.restore(manifest.disks[0]!);
      const truth = bytesOf(this.#truth.get(manifest.generation)!);
      expect(bytes.equals(truth), `generation ${manifest.generation}`).toBe(true);
    }
  }

  /** A program that has come to such a request, and did not stand there before. */
  #atWindow(): Actor | undefined {
    for (const actor of this.#actors.all) {
      if (actor.suspended || actor.killed) continue;
      const found = actor.parked.find((one) => {
        return !this.#seen.has(one) && WINDOWS[actor.name]?.test(`${one.operation} ${one.key}`);
      });
      if (found === undefined) continue;
      this.#seen.add(found);
      return actor;
    }
    return undefined;
  }

  /** One program stands still, and is alive; up to three others come and go, and time goes by. */
  async #meanwhile({ name }: Actor): Promise<void> {
    const random = this.#random;
    const rivals = RIVALS[name]!;
    for (let count = 1 + random(3); count > 0; count--) {
      if (random(3) > 0) this.#forward([HOUR, 3 * HOUR, 26 * HOUR][random(3)]!);
      const before = new Set(this.#actors.all);
      this.#startOne(rivals[random(rivals.length)]!);
      await this.#actors.settle();
      for (const rival of this.#actors.all) if (!before.has(rival)) await this.#letRun(rival);
    }
    this.outcomes["held at a window"] = (this.outcomes["held at a window"] ?? 0) + 1;
  }

  /** To its end, unless it waits for somebody else. */
  async #letRun(actor: Actor): Promise<void> {
    for (let requests = 0; requests < RIVAL_REQUESTS_MAX && !actor.done; requests++) {
      if (actor.parked.length === 0) return;
      this.#actors.release(actor, this.#random(actor.parked.length));
      await this.#actors.settle();
      await this.check();
    }
  }

  #startAny(): void {
    const ways = Object.entries(SHARES).flatMap(([name, share]) => Array<string>(share).fill(name));
    this.#startOne(ways[this.#random(ways.length)]!);
  }

  #startOne(name: string): void {
    const source = SOURCES[this.#random(SOURCES.length)]!;
    if (name === "backup") this.#startBackup(source);
    else if (name === "prune") this.#startPrune();
    else if (name === "forget") this.#startForget(source);
    else if (name === "restore") this.#startRestore(source);
    else if (name === "return") this.#startReturn();
    else this.#startHold(source);
  }

  #start(name: string, work: (store: ObjectStore, actor: Actor) => Promise<unknown>): Actor {
    const actor = this.#actors.start(name, work, (failure) => {
      const code = failure instanceof AppError ? failure.code : failure === undefined ? "done" : "unexpected";
      const outcome = `${name} ${code}`;
      this.outcomes[outcome] = (this.outcomes[outcome] ?? 0) + 1;
      if (failure === undefined || EXPECTED.has(code)) return;
      if (actor.presumedDead && code === "E_STORE") return; // its uploads were cleared away
      // it slept while what it had listed was forgotten and deleted, and stops before it condemns or commits anything
      if (actor.presumedDead && ["E_PRUNE_UNREADABLE", "E_LAYER_MISSING"].includes(code)) return;
      const excused = failure instanceof AppError && failure.kind === "corrupt" && this.#doubtful.size > 0;
      if (!excused) this.#failure ??= new Error(`${name} failed: ${messageOf(failure)}`, { cause: failure });
    });
    return actor;
  }

  async #prune(store: ObjectStore, graceMs: number, thin: boolean): Promise<PruneReport> {
    const holder = { host: "test", pid: 1 };
    const rewrite = thin ? { maxUnused: 0, maxRepackBytes: Infinity } : undefined;
    const options = { graceMs, dryRun: false, lookup: LOOKUP, holder, warn: () => undefined, rewrite };
    const report = await prune({ ...this.#repository, store }, options, new AbortController());
    for (const kind of ["condemned", "deleted", "kept"] as const) {
      this.outcomes[kind] = (this.outcomes[kind] ?? 0) + report[kind].packs + report[kind].layers;
    }
    for (const kind of ["packs", "forwards"] as const) {
      const what = `rewritten ${kind}`;
      this.outcomes[what] = (this.outcomes[what] ?? 0) + report.rewritten[kind];
    }
    return report;
  }

  #startPrune(): void {
    const graceMs = [DAY, 2 * HOUR, 2 * HOUR][this.#random(3)]!;
    const thin = this.#random(3) > 0;
    this.#start("prune", (store) => this.#prune(store, graceMs, thin));
  }

  #startBackup(source: string): void {
    const random = this.#random;
    const contents = this.#disks.get(source)!;
    for (let changes = random(6); changes > 0; changes--) contents[random(CHUNKS)] = random(CONTENTS);
    const taken = [...contents];
    const listed = [...this.#repository.store.objects.keys()].flatMap((key) => {
      const name = parseKey(key);
      return name?.type === "generation" && name.source === source ? [name.generation] : [];
    });
    const parent = random(3) === 0 ? listed[random(Math.max(1, listed.length))] : undefined;
    const before = parent === undefined ? undefined : this.#truth.get(parent);
    const disk = new ScriptedDisk("vda", bytesOf(taken), { extents: extentsSince(before, taken) });
    const host = this.#hosts[random(this.#hosts.length)]!;
    const how = parent === undefined ? { full: random(4) === 0 } : { bitmap: "b", parent };
    const actor = this.#start("backup", (store) => host.backup([disk], { source, store, ...how }));
    this.#taking.set(actor, taken);
  }

  #startForget(source: string): void {
    this.#start("forget", async (store) => {
      const repository = { ...this.#repository, store };
      const some = (await loadGenerations(this.#repository, source, never)).filter(
        () => this.#random(2) === 0,
      );
      await forgetThem(
        repository,
        source,
        some.map(({ generation }) => generation),
      );
    });
  }

  #startHold(source: string): void {
    const hold = this.#random(2) === 0;
    this.#start(hold ? "hold" : "release", async (store) => {
      const repository = { ...this.#repository, store };
      const name = await this.#any(source);
      if (name === undefined) return;
      const details = { reason: null, host: "test", writer: "test" };
      if (hold) await holdGeneration(repository, name, details, never);
      else await releaseGeneration(repository, name, never);
    });
  }

  /** One that has begun must end with the right bytes, whatever is forgotten and pruned meanwhile. */
  #startRestore(source: string): void {
    this.#start("restore", async (store, actor) => {
      const repository = { ...this.#repository, store };
      const manifest = await this.#any(source);
      if (manifest === undefined || this.#isDoubtful(manifest.generation)) return;
      const pinning = {
        purpose: "restore" as const,
        host: "test",
        writer: "test",
        unpinned: (): never => expect.unreachable(),
      };
      await withPin(repository, manifest, pinning, never, async () => {
        const [disk] = manifest.disks;
        const target = new MemoryTarget(disk!.size);
        try {
          await restoreDisk(
            disk!,
            target,
            this.#hosts[0]!.tools(store),
            new AbortController(),
            () => undefined,
          );
        } catch (error) {
          if (actor.killed || Date.now() - actor.startedAt >= DAY)
            throw new AppError("notFound", "E_NO_GENERATION", "late");
          throw error;
        }
        if (!target.bytes.equals(bytesOf(this.#truth.get(manifest.generation)!)))
          throw new Error("wrong bytes");
      });
    });
  }

  #startReturn(): void {
    const forgotten = [...this.#repository.store.objects.keys()].flatMap((key) => {
      const name = parseKey(key);
      return name?.type === "forgotten" ? [name] : [];
    });
    const name = forgotten[this.#random(Math.max(1, forgotten.length))];
    if (name === undefined) return;
    const { generation, source } = name;
    const record = this.#repository.store.objects.get(forgottenKey(source, generation));
    const actor = this.#start("return", async (store) => {
      try {
        await restoreGeneration({ ...this.#repository, store }, name, never);
        this.#returning.delete(actor);
      } catch (error) {
        this.#returning.delete(actor);
        const promised =
          Date.now() - record!.lastModified.getTime() < GRACE_MIN && !this.#doubtful.has(generation);
        if (promised && !actor.killed) throw new Error("within the grace", { cause: error });
        throw error;
      }
    });
    this.#returning.set(actor, generation);
  }

  async #any(source: string): Promise<StoredManifest | undefined> {
    const all = await loadGenerations(this.#repository, source, never);
    return all[this.#random(Math.max(1, all.length))];
  }

  #onRequest(actor: Actor, operation: string, key: string): void {
    const name = parseKey(key);
    this.#changed ||= operation === "delete" || name?.type === "generation";
    if (operation === "replace" && name?.type === "lease") this.#leases.set(key, actor);
    if (operation !== "put" || name?.type !== "generation") return;
    const taken = this.#taking.get(actor);
    if (taken === undefined) return;
    this.#truth.set(name.generation, taken);
    if (actor.presumedDead) this.#doubtful.add(name.generation);
  }

  /** Mostly of one program for a while: so that whole prunes come between two requests of a backup. */
  #releaseSome(actors: readonly Actor[]): void {
    const ready = actors.filter(({ suspended, parked }) => !suspended && parked.length > 0);
    if (this.#random(60) === 0) this.#favorite = undefined;
    if (this.#favorite === undefined || !ready.includes(this.#favorite)) {
      this.#favorite = ready[this.#random(Math.max(1, ready.length))];
    }
    if (this.#favorite === undefined) return;
    this.#actors.release(this.#favorite, this.#random(this.#favorite.parked.length));
  }

  #kill(actor: Actor): void {
    const returning = this.#returning.get(actor);
    if (returning !== undefined) this.#doubtful.add(returning);
    this.#returning.delete(actor);
    this.#actors.kill(actor, this.#random(2) === 0);
    this.outcomes["killed"] = (this.outcomes["killed"] ?? 0) + 1;
  }

  #toggle(actor: Actor): void {
    actor.suspended = !actor.suspended;
  }

  /** Time goes by; who is not stopped renews its lease meanwhile. */
  #forward(ms: number): void {
    forward(ms);
    for (const actor of this.#actors.all)
      if (actor.suspended && ms >= LEASE_MS / 4) actor.presumedDead = true;
    const { objects } = this.#repository.store;
    for (const [key, { killed, suspended, done }] of this.#leases) {
      const lease = objects.get(key);
      if (lease === undefined || killed || suspended || done) continue;
      objects.set(key, { bytes: lease.bytes, lastModified: new Date() });
    }
  }

  #contents(): number[] {
    return Array.from({ length: CHUNKS }, () => this.#random(CONTENTS));
  }
}

function bytesOf(contents: readonly number[]): Buffer {
  return Buffer.concat(contents.map((seed) => (seed === 0 ? Buffer.alloc(CHUNK) : noise(seed, CHUNK))));
}

/** What a bitmap since `before` says; without one all is data. */
function extentsSince(before: readonly number[] | undefined, now: readonly number[]): Extent[] {
  return now.map((content, index) => ({
    offset: index * CHUNK,
    length: CHUNK,
    state: before !== undefined && before[index] === content ? "unchanged" : "data",
  }));
}
