import type { Repository } from "../repository/config.ts";
import { listHeld } from "../repository/holds.ts";
import { livePins, type Pin, type PinLookup } from "../repository/pins.ts";

/** Why generations of a source must stay at this moment: a hold first, then live runs. */
export interface Guard {
  readonly held: boolean;
  readonly pins: readonly Pin[];
}

export type Guards = ReadonlyMap<string, Guard>;

/** What is held or in use, of one source, by generation. A hold counts by its name alone, readable or not. */
export async function readGuards(
  repository: Repository,
  source: string,
  lookup: PinLookup,
  signal: AbortSignal,
): Promise<Guards> {
  const guards = new Map<string, { held: boolean; pins: Pin[] }>();
  for (const { generation } of await listHeld(repository, source, signal)) {
    guards.set(generation, { held: true, pins: [] });
  }
  for (const pin of await livePins(repository, source, lookup, signal)) {
    const guard = guards.get(pin.pinned) ?? { held: false, pins: [] };
    guard.pins.push(pin);
    guards.set(pin.pinned, guard);
  }
  return guards;
}

/** For people: "held", "in use by a restore on alpha since 2026-11-22T03:00:00.000Z". */
export function guardReasons({ held, pins }: Guard): string[] {
  return [...(held ? ["held"] : []), ...pins.map((pin) => `in use by ${userOf(pin)}`)];
}

export function userOf({ purpose, host, startedAt }: Pin): string {
  return `a ${purpose} on ${host} since ${startedAt}`;
}
