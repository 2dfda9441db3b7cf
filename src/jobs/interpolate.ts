import { SHELL_FIELDS } from "./schema.ts";

export type Environment = Readonly<Record<string, string | undefined>>;

const REFERENCE = /\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}/g;

/**
 * Replaces `${NAME}` and `${NAME:-default}` in every text of a document by what the environment says; `$${` is a plain
 * `${`. What replaces it is text and nothing else: it cannot add fields. Keys, and command lines, which `sh` reads, are left
 * alone.
 *
 * @param onMissing told of each variable that is not set and has no default, and where.
 */
export function interpolate(
  value: unknown,
  environment: Environment,
  onMissing: (path: readonly PropertyKey[], variable: string) => void,
  path: readonly PropertyKey[] = [],
): unknown {
  if (typeof value === "string") {
    if (SHELL_FIELDS.has(String(path.at(-1)))) return value;
    return value.replaceAll(REFERENCE, (all, variable: string | undefined, otherwise: string | undefined) => {
      if (variable === undefined) return "${";
      const set = environment[variable];
      if (set !== undefined && (set !== "" || otherwise === undefined)) return set;
      if (otherwise !== undefined) return otherwise;
      onMissing(path, variable);
      return all;
    });
  }
  if (Array.isArray(value)) {
    return value.map((one, index) => interpolate(one, environment, onMissing, [...path, index]));
  }
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, one]) => [
      key,
      interpolate(one, environment, onMissing, [...path, key]),
    ]),
  );
}
