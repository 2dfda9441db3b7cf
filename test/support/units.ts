import { readFileSync } from "node:fs";
import { resolve } from "node:path";

export const UNITS = resolve(import.meta.dirname, "../../deploy/systemd");

/** What a unit of `deploy/systemd` says, by key; those that may stand several times have several values. */
export type Unit = ReadonlyMap<string, readonly string[]>;

export function readUnit(name: string): Unit {
  const unit = new Map<string, string[]>();
  for (const line of readFileSync(`${UNITS}/${name}`, "utf8").split("\n")) {
    const [, key, value] = /^([A-Za-z]+)=(.*)$/.exec(line) ?? [];
    if (key !== undefined) unit.set(key, [...(unit.get(key) ?? []), value!]);
  }
  return unit;
}

/**
 * The arguments that a unit starts the program with, without the program itself.
 *
 * @param instance what stands behind the `@` of its name.
 * @param environment what its EnvironmentFile= holds. `$NAME` becomes words of its own, `${NAME}` one.
 */
export function startArguments(
  unit: Unit,
  instance: string,
  environment: Readonly<Record<string, string>>,
): string[] {
  const [line = ""] = unit.get("ExecStart") ?? [];
  const words = line.split(" ").flatMap((word) => {
    const [, several] = /^\$(\w+)$/.exec(word) ?? [];
    if (several !== undefined) return (environment[several] ?? "").split(" ").filter((one) => one !== "");
    return [
      word.replaceAll("%i", instance).replace(/\$\{(\w+)\}/g, (_, name: string) => environment[name] ?? ""),
    ];
  });
  return words.slice(1);
}

/**
 * Starts a program with as little as the unit leaves it: no new privileges, its capabilities, and a file system that can
 * be written only where the unit says. Its seccomp filters are left out.
 *
 * @param cache stands for the CacheDirectory=.
 */
export function confinedAs(unit: Unit, cache: string): string[] {
  const capabilities = (unit.get("CapabilityBoundingSet")?.[0] ?? "").split(" ").filter((one) => one !== "");
  const bounding = ["-all", ...capabilities.map((one) => `+${one.replace("CAP_", "").toLowerCase()}`)].join(
    ",",
  );
  const writable = [cache, ...(unit.get("ReadWritePaths") ?? []).flatMap((paths) => paths.split(" "))];
  const script = [
    "mount --make-rprivate /",
    ...writable.map((path) => `mount --bind '${path}' '${path}'`),
    "mount -o remount,bind,ro /",
    `exec setpriv --no-new-privs --inh-caps=-all --bounding-set='${bounding}' -- "$@"`,
  ];
  return ["unshare", "--mount", "sh", "-ec", script.join("\n"), "sh"];
}
