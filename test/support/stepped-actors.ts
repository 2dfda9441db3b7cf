import type { ChunkWorkers } from "../../src/chunk/workers.ts";
import { AppError } from "../../src/errors.ts";
import type { ObjectStore } from "../../src/store/store.ts";
import type { FaultyOperation } from "./faulty-store.ts";
import { HookedStore } from "./hooked-store.ts";

/** What a killed program's requests end with; nothing of it runs on. */
export const KILLED = new AppError("cancelled", "E_KILLED", "planned: killed");

/** Turns of the event loop without any change, after which nothing more comes by itself. */
const QUIET_TURNS = 8;

interface Parked {
  readonly operation: FaultyOperation;
  readonly key: string;
  /** @param perform whether the request is done at all. */
  go(perform: boolean): void;
}

/** A program under way, whose requests wait until they are let go. */
export interface Actor {
  readonly name: string;
  readonly startedAt: number;
  readonly parked: Parked[];
  killed: boolean;
  suspended: boolean;
  /** It was not heard of for longer than a lease lasts. */
  presumedDead: boolean;
  done: boolean;
}

/** Runs programs against one store, a request at a time, in whatever order a test chooses. */
export class SteppedActors {
  readonly all = new Set<Actor>();
  readonly #inner: ObjectStore;
  readonly #before: (actor: Actor, operation: FaultyOperation, key: string) => void;
  #changes = 0;
  /** Calls of worker threads, which end at a time of their own. */
  #busy = 0;

  /** @param before told of each request when it is let go, right before it is done. */
  constructor(inner: ObjectStore, before: (actor: Actor, operation: FaultyOperation, key: string) => void) {
    this.#inner = inner;
    this.#before = before;
  }

  /** Starts a program. @param ended told of its failure, or of undefined; never for one that was killed. */
  start(
    name: string,
    work: (store: ObjectStore, actor: Actor) => Promise<unknown>,
    ended: (failure: unknown) => void,
  ): Actor {
    const actor: Actor = {
      name,
      startedAt: Date.now(),
      parked: [],
      killed: false,
      suspended: false,
      presumedDead: false,
      done: false,
    };
    this.all.add(actor);
    const finish = (failure: unknown): void => {
      actor.done = true;
      this.all.delete(actor);
      this.#changes++;
      if (!actor.killed) ended(failure);
    };
    void work(this.#storeOf(actor), actor).then(() => finish(undefined), finish);
    return actor;
  }

  /** The same workers, whose calls `settle` waits for. */
  watched(workers: ChunkWorkers): ChunkWorkers {
    return new Proxy(workers, {
      get: (target, name) => {
        const value: unknown = Reflect.get(target, name, target);
        if (typeof value !== "function") return value;
        return (...args: unknown[]): unknown => {
          const result: unknown = Reflect.apply(value, target, args);
          if (!(result instanceof Promise)) return result;
          this.#busy++;
          return result.finally(() => this.#busy--);
        };
      },
    });
  }

  /** Lets one request of a program go: the `index`th of those that wait. */
  release(actor: Actor, index: number): void {
    actor.parked.splice(index, 1)[0]?.go(true);
  }

  /** Ends a program where it is. @param perform whether requests on their way are still done, unheard. */
  kill(actor: Actor, perform: boolean): void {
    actor.killed = true;
    for (const { go } of actor.parked.splice(0)) go(perform);
  }

  /** Waits until every program has ended or waits for a request. */
  async settle(): Promise<void> {
    for (let quiet = 0; quiet < QUIET_TURNS;) {
      const before = this.#changes;
      await new Promise((resolve) => setImmediate(resolve));
      quiet = this.#changes === before && this.#busy === 0 ? quiet + 1 : 0;
    }
  }

  #storeOf(actor: Actor): ObjectStore {
    return new HookedStore(this.#inner, {
      before: async (operation, key) => {
        if (actor.killed) throw KILLED;
        const perform = await new Promise<boolean>((go) => {
          actor.parked.push({ operation, key, go });
          this.#changes++;
        });
        this.#changes++;
        if (!perform) throw KILLED;
        this.#before(actor, operation, key);
      },
      after: () => {
        this.#changes++;
        if (actor.killed) throw KILLED;
      },
    });
  }
}
