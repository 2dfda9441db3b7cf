import { LENGTH_MAX, mutate, type Random } from "./mutate.ts";

/** Characters that are added at once. */
const COPIED_MAX = 64 * 1024;

const VALUES: readonly unknown[] = [
  null,
  true,
  0,
  -1,
  1.5,
  1e308,
  2 ** 31,
  2 ** 53,
  -(2 ** 53),
  "",
  "x".repeat(5000),
  "\u0000",
  "\ud800",
  "../../etc/passwd",
  "__proto__",
  [],
  {},
  [[[[[[]]]]]],
  { length: 2 ** 32 },
];

/**
 * A JSON document with a few members changed, taken away, doubled, renamed or put elsewhere; now and then as bytes. A text
 * that is no JSON is changed as bytes.
 */
export function mutateJson(random: Random, input: Buffer, others: readonly Buffer[]): Buffer {
  if (random(6) === 0) return mutate(random, input, others);
  try {
    const document: unknown = JSON.parse(input.toString("utf8"));
    const times = 1 + random(3);
    for (let time = 0; time < times; time++) change(random, document);
    const changed = Buffer.from(JSON.stringify(document));
    return changed.length > LENGTH_MAX ? input : changed;
  } catch {
    return mutate(random, input, others);
  }
}

function change(random: Random, document: unknown): void {
  const places = [...containersOf(document)];
  const place = places[random(places.length)];
  if (place === undefined) return;
  const keys = Object.keys(place);
  const key = keys[random(keys.length)] ?? "x";
  const holder = place as Record<string, unknown>;
  switch (random(6)) {
    case 0:
      if (Array.isArray(place)) place.splice(Number(key), 1);
      else Reflect.deleteProperty(holder, key);
      return;
    case 1:
      if (Array.isArray(place)) place.push(...copies(random, place[0]));
      else holder[`${key}2`] = holder[key];
      return;
    case 2: {
      const from = places[random(places.length)] as Record<string, unknown>;
      const other = Object.keys(from);
      holder[key] = structuredClone(from[other[random(other.length)] ?? ""]);
      return;
    }
    case 3: {
      const value = holder[key];
      if (typeof value === "string") holder[key] = mutate(random, Buffer.from(value), []).toString("utf8");
      else if (typeof value === "number") holder[key] = value + [1, -1, 0.5, 2 ** 32, -(2 ** 32)][random(5)]!;
      else holder[key] = structuredClone(VALUES[random(VALUES.length)]);
      return;
    }
    default:
      holder[key] = structuredClone(VALUES[random(VALUES.length)]);
  }
}

/** So many that the document stays below the limit: the copies may be copied in their turn. */
function copies(random: Random, value: unknown): unknown[] {
  const size = (JSON.stringify(value) as string | undefined)?.length ?? 1;
  const most = Math.min(2000, Math.floor(COPIED_MAX / size));
  return Array.from({ length: random(most + 1) }, () => structuredClone(value));
}

function* containersOf(value: unknown): Generator<object> {
  if (value === null || typeof value !== "object") return;
  yield value;
  for (const below of Object.values(value)) yield* containersOf(below);
}
