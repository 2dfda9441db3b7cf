import { formatSize, parseSize } from "../../../src/bytes/size.ts";
import { MiB } from "../../../src/bytes/size.ts";
import { parseNbdUri } from "../../../src/nbd/uri.ts";
import { parseGenerationBitmap, parseNode, tokenOfBitmap } from "../../../src/qemu/names.ts";
import { parseQmpMessage } from "../../../src/qemu/qmp/messages.ts";
import { parseSchema } from "../../../src/qemu/qmp/schema.ts";
import { parseKey } from "../../../src/repository/names.ts";
import { resolveGeneration } from "../../../src/repository/resolve-generation.ts";
import { parseTags, qmpPath, sourceSettings } from "../../../src/settings.ts";
import { parseLocation } from "../../../src/store/location.ts";
import { Calendar, parseDuration } from "../../../src/upkeep/calendar.ts";
import { parseGrace } from "../../../src/upkeep/prune/grace.ts";
import { memoryRepository } from "../../support/memory-repository.ts";
import { vectors } from "../../support/vectors.ts";
import { mutate } from "../mutate.ts";
import { mutateJson } from "../mutate-json.ts";
import { Broken, type FuzzTarget } from "../target.ts";

const never = new AbortController().signal;

function text(name: string, seeds: readonly string[], parse: (text: string) => unknown): FuzzTarget {
  return {
    name,
    seeds: seeds.map((seed) => Buffer.from(seed)),
    mutate,
    allocatesMax: 4 * MiB,
    decode: async (input) => {
      await parse(input.toString("utf8"));
    },
  };
}

/** What people and QEMU write. */
export async function textTargets(): Promise<FuzzTarget[]> {
  return [
    text("NBD URI", NBD_URIS, (uri) => parseNbdUri(uri)),
    text("source", [...NBD_URIS, "qmp:/run/web/qmp.sock", "qmp:"], (source) =>
      sourceSettings(source, [], "web"),
    ),
    text("disk flag", ["vda=nbd://h/vda", "a.b=nbd+unix:///?socket=/s"], (flag) => {
      sourceSettings(undefined, [flag], "db");
    }),
    text("QMP path", ["qmp:/run/web/qmp.sock"], (source) => qmpPath(source)),
    text("location", LOCATIONS, (location) => parseLocation(location)),
    text("size", ["64KiB", "1.5GiB", "4MiB", "100", "0.5TiB"], (size) => {
      const bytes = parseSize(size);
      if (!Number.isSafeInteger(bytes) || bytes < 0) throw new Broken(`${size} is ${bytes} bytes`);
      formatSize(bytes);
    }),
    text("duration", ["14d", "6m", "1y2m", "36h", "1y2m3w4d5h"], (duration) => parseDuration(duration)),
    text("grace", ["24h", "3d", "2w"], (grace) => parseGrace(grace)),
    text("time zone", ["Europe/Berlin", "UTC", "+01:00"], (zone) => new Calendar(zone).text(new Date(0))),
    text("tags", ["ticket=4711", "a=b=c"], (tag) => parseTags([tag])),
    text("key", KEYS, (key) => parseKey(key)),
    text("bitmap name", BITMAPS, (name) => [
      parseGenerationBitmap(name),
      parseNode(name),
      tokenOfBitmap(name),
    ]),
    await generationTarget(),
    { ...text("QMP message", QMP_LINES, (line) => parseQmpMessage(Buffer.from(line))), mutate: mutateJson },
    {
      ...text("QMP schema", [QMP_SCHEMA], (schema) => walkSchema(schema)),
      mutate: mutateJson,
      allocatesMax: 32 * MiB,
    },
  ];
}

const NBD_URIS = [
  "nbd://host/web",
  "nbd://127.0.0.1:10810/",
  "nbds://host/export?tls-certificates=/etc/pki&tls-hostname=other",
  "nbds://user@host:1/x?tls-psk-file=/keys.psk",
  "nbd+unix:///web?socket=/tmp/web.sock",
  "nbds+unix:///%41%20b?socket=%2Ftmp%2Fs",
  "nbd://[::1]:10809/a%2Fb",
];
const LOCATIONS = [
  "s3://bucket/prefix/deep?endpoint=http://127.0.0.1:9000&region=us-east-1&path-style=true",
  "s3://bucket",
  "file:///var/backups/vms",
  "/backup/vms",
  "relative/path",
];
const KEYS = [
  "repository.json",
  "packs/c0000000-0000-4000-8000-000000000000",
  "layers/c0000000-0000-4000-8000-000000000000",
  "generations/web/019aa950-0000-7000-8000-000000000002.json",
  "runs/web/019aa94f-0000-7000-8000-00000000000a.begin.json",
  "leases/web/019aa94f-0000-7000-8000-00000000000a",
  "condemned/c0000000-0000-4000-8000-000000000000.json",
  "damaged/c0000000-0000-4000-8000-000000000000/c0000000-0000-4000-8000-000000000001.json",
  "holds/web/019aa950-0000-7000-8000-000000000002.json",
];
const BITMAPS = [
  "bk-5f0c9a52-3d1b-4c7e-9e63-0b6a0f5d2c11-019aa950-0000-7000-8000-000000000002-vda",
  "bk-0123456789-tmp",
  "bk-0123456789-s0",
];
const QMP_LINES = [
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}',
  '{"return": {"status": "running", "running": true}, "id": 3}',
  '{"error": {"class": "GenericError", "desc": "no such node"}, "id": 4}',
  '{"timestamp": {"seconds": 1700000000, "microseconds": 250000}, "event": "JOB_STATUS_CHANGE", "data": {"id": "j"}}',
];
const QMP_SCHEMA = JSON.stringify([
  { "meta-type": "command", name: "blockdev-add", "arg-type": "1", "ret-type": "0" },
  {
    "meta-type": "object",
    name: "1",
    members: [{ name: "driver", type: "2" }],
    tag: "driver",
    variants: [{ case: "file", type: "3" }],
  },
  { "meta-type": "enum", name: "2", values: ["file", "qcow2"], members: [{ name: "file" }] },
  {
    "meta-type": "object",
    name: "3",
    members: [
      { name: "next", type: "4" },
      { name: "self", type: "3" },
    ],
  },
  { "meta-type": "array", name: "4", "element-type": "1" },
  { "meta-type": "alternate", name: "5", members: [{ type: "1" }, { type: "4" }] },
  { "meta-type": "event", name: "STOP", "arg-type": "0" },
]);

/** A schema that refers to itself must not lead anybody round in circles. */
function walkSchema(text: string): void {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return; // what is no JSON does not come this far
  }
  const schema = parseSchema(value);
  if (schema === undefined) return;
  schema.hasCommand("blockdev-add");
  for (const path of [["driver"], ["driver=file", "next"], ["next", "driver=file", "self", "self", "next"]]) {
    schema.hasArgument("blockdev-add", path);
    schema.valuesOf("blockdev-add", path);
  }
}

async function generationTarget(): Promise<FuzzTarget> {
  const all = vectors("manifests") as {
    source: string;
    generation: string;
    pass: { hex: string; encrypted: boolean }[];
  };
  const repository = memoryRepository();
  const plain = all.pass.find(({ encrypted }) => !encrypted)!;
  await repository.store.put(
    `generations/${all.source}/${all.generation}.json`,
    Buffer.from(plain.hex, "hex"),
    never,
  );
  const seeds = [
    "latest",
    "web",
    "web@latest",
    "web@2026-11-22T03:00Z",
    "web@2026-11-22",
    all.generation,
    "019aa950",
  ];
  return text("generation", seeds, (name) => resolveGeneration(repository, name, never));
}
