import { randomBytes, randomUUID } from "node:crypto";
import { AppError } from "../errors.ts";

/** Where the objects of a repository live (FORMAT.md, "Objects"); each ends in "/". */
export const Prefix = {
  keys: "keys/",
  packs: "packs/",
  layers: "layers/",
  generations: "generations/",
  runs: "runs/",
  leases: "leases/",
  index: "index/",
  forwards: "forwards/",
  condemned: "condemned/",
  damaged: "damaged/",
  checked: "checked/",
  holds: "holds/",
  forgotten: "forgotten/",
  profiles: "profiles/",
} as const;

export const REPOSITORY_KEY = "repository.json";

/** Every kind of object a repository holds, with what its key says. */
export type ObjectName =
  | { readonly type: "repository" }
  | { readonly type: "key"; readonly id: string }
  | { readonly type: "pack"; readonly pack: string }
  | { readonly type: "layer"; readonly layer: string }
  | { readonly type: "generation"; readonly source: string; readonly generation: string }
  | { readonly type: "runBegin"; readonly source: string; readonly run: string }
  | { readonly type: "runEnd"; readonly source: string; readonly run: string }
  | { readonly type: "drill"; readonly source: string; readonly drill: string }
  | { readonly type: "lease"; readonly source: string; readonly run: string }
  | { readonly type: "index"; readonly source: string; readonly id: string }
  | { readonly type: "forward"; readonly pack: string; readonly id: string }
  | { readonly type: "condemned"; readonly prune: string }
  | { readonly type: "damaged"; readonly pack: string; readonly id: string }
  | { readonly type: "checked"; readonly id: string }
  | { readonly type: "hold"; readonly source: string; readonly generation: string }
  | { readonly type: "forgotten"; readonly source: string; readonly generation: string }
  | { readonly type: "profile"; readonly source: string; readonly profile: string };

export function keySlotKey(id: string): string {
  return `${Prefix.keys}${id}.json`;
}

export function packKey(pack: string): string {
  return Prefix.packs + pack;
}

export function layerKey(layer: string): string {
  return Prefix.layers + layer;
}

export function generationKey(source: string, generation: string): string {
  return `${Prefix.generations}${source}/${generation}.json`;
}

export function runBeginKey(source: string, run: string): string {
  return `${Prefix.runs}${source}/${run}.begin.json`;
}

export function runEndKey(source: string, run: string): string {
  return `${Prefix.runs}${source}/${run}.end.json`;
}

export function drillKey(source: string, drill: string): string {
  return `${Prefix.runs}${source}/${drill}.drill.json`;
}

export function leaseKey(source: string, run: string): string {
  return `${Prefix.leases}${source}/${run}`;
}

export function indexKey(source: string, id: string): string {
  return `${Prefix.index}${source}/${id}`;
}

export function forwardKey(pack: string, id: string): string {
  return `${Prefix.forwards}${pack}/${id}`;
}

export function condemnedKey(prune: string): string {
  return `${Prefix.condemned}${prune}.json`;
}

export function damagedKey(pack: string, id: string): string {
  return `${Prefix.damaged}${pack}/${id}.json`;
}

export function checkedKey(id: string): string {
  return Prefix.checked + id;
}

export function holdKey(source: string, generation: string): string {
  return `${Prefix.holds}${source}/${generation}.json`;
}

export function forgottenKey(source: string, generation: string): string {
  return `${Prefix.forgotten}${source}/${generation}.json`;
}

export function profileKey(source: string, profile: string): string {
  return `${Prefix.profiles}${source}/${profile}.json`;
}

const UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
const SOURCE = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}";

const KEY_FORMS: readonly (readonly [RegExp, (first: string, second: string) => ObjectName])[] = [
  [/^repository\.json$/, () => ({ type: "repository" })],
  [new RegExp(`^keys/(${UUID})\\.json$`), (id) => ({ type: "key", id })],
  [new RegExp(`^packs/(${UUID})$`), (pack) => ({ type: "pack", pack })],
  [new RegExp(`^layers/(${UUID})$`), (layer) => ({ type: "layer", layer })],
  [
    new RegExp(`^generations/(${SOURCE})/(${UUID})\\.json$`),
    (source, generation) => ({ type: "generation", source, generation }),
  ],
  [
    new RegExp(`^runs/(${SOURCE})/(${UUID})\\.begin\\.json$`),
    (source, run) => ({ type: "runBegin", source, run }),
  ],
  [
    new RegExp(`^runs/(${SOURCE})/(${UUID})\\.end\\.json$`),
    (source, run) => ({ type: "runEnd", source, run }),
  ],
  [
    new RegExp(`^runs/(${SOURCE})/(${UUID})\\.drill\\.json$`),
    (source, drill) => ({ type: "drill", source, drill }),
  ],
  [new RegExp(`^leases/(${SOURCE})/(${UUID})$`), (source, run) => ({ type: "lease", source, run })],
  [new RegExp(`^index/(${SOURCE})/(${UUID})$`), (source, id) => ({ type: "index", source, id })],
  [new RegExp(`^forwards/(${UUID})/(${UUID})$`), (pack, id) => ({ type: "forward", pack, id })],
  [new RegExp(`^condemned/(${UUID})\\.json$`), (prune) => ({ type: "condemned", prune })],
  [new RegExp(`^damaged/(${UUID})/(${UUID})\\.json$`), (pack, id) => ({ type: "damaged", pack, id })],
  [new RegExp(`^checked/(${UUID})$`), (id) => ({ type: "checked", id })],
  [
    new RegExp(`^holds/(${SOURCE})/(${UUID})\\.json$`),
    (source, generation) => ({ type: "hold", source, generation }),
  ],
  [
    new RegExp(`^forgotten/(${SOURCE})/(${UUID})\\.json$`),
    (source, generation) => ({ type: "forgotten", source, generation }),
  ],
  [
    new RegExp(`^profiles/(${SOURCE})/(${UUID})\\.json$`),
    (source, profile) => ({ type: "profile", source, profile }),
  ],
];

/** What a key names; undefined for a key that no version 1 repository writes. */
export function parseKey(key: string): ObjectName | undefined {
  for (const [form, name] of KEY_FORMS) {
    const match = form.exec(key);
    if (match !== null) return name(match[1] ?? "", match[2] ?? "");
  }
  return undefined;
}

const SOURCE_FORM = new RegExp(`^${SOURCE}$`);

/** True for a name that may stand in keys: up to 128 letters, digits, ".", "_" and "-", not beginning with ".". */
export function isSourceName(name: string): boolean {
  return SOURCE_FORM.test(name);
}

/**
 * The name, checked. Disks are held to the same rule.
 * @throws AppError E_SOURCE_NAME (usage).
 */
export function checkSourceName(name: string): string {
  if (isSourceName(name)) return name;
  throw new AppError(
    "usage",
    "E_SOURCE_NAME",
    `Not a name for a source: "${name}"; use 1 to 128 letters, digits, ".", "_" and "-", and no "." in front`,
  );
}

const UUID_FORM = new RegExp(`^${UUID}$`);

/** True for the one spelling of UUIDs in repositories: lower case, with hyphens, any version. */
export function isUuid(text: string): boolean {
  return UUID_FORM.test(text);
}

/** A random (version 4) UUID: 122 random bits, for names that nobody else uses. */
export function newUuid(): string {
  return randomUUID();
}

/**
 * A version 7 UUID (RFC 9562, 5.7), whose text sorts by time.
 * @param timeMs milliseconds since 1970, 0 to 2^48-1.
 */
export function uuidv7(timeMs: number): string {
  const bytes = randomBytes(16);
  bytes.writeUIntBE(timeMs, 0, 6);
  bytes[6] = (bytes[6]! & 0x0f) | 0x70;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = bytes.toString("hex");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/** The time in a version 7 UUID, milliseconds since 1970; undefined for any other text. */
export function uuidTime(id: string): number | undefined {
  if (!isUuid(id) || id[14] !== "7") return undefined;
  return parseInt(id.slice(0, 8) + id.slice(9, 13), 16);
}

/** The 16 bytes of a UUID. @param id a UUID as `isUuid` takes it. */
export function uuidBytes(id: string): Buffer {
  return Buffer.from(id.replaceAll("-", ""), "hex");
}

/** The text of 16 bytes. */
export function uuidText(bytes: Uint8Array): string {
  const hex = Buffer.from(bytes.buffer, bytes.byteOffset, 16).toString("hex");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
