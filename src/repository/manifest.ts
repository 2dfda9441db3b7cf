import { hash } from "node:crypto";
import { z } from "zod";
import { MiB } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import { ChunkSize, type Repository } from "./config.ts";
import { count, digestText, name, shortText, timeText, uuid, uuid7 } from "./fields.ts";
import { generationKey } from "./names.ts";
import { encodeRecord, parseRecord } from "./record.ts";

/** A manifest is never larger, in bytes as stored. */
export const MANIFEST_SIZE_MAX = 4 * MiB;

/** Limits of format version 1 (FORMAT.md, "Limits"). */
const DISKS_MAX = 1024;
const LAYERS_MAX = 16;
const TAGS_MAX = 64;
export const DISK_SIZE_MAX = 64 * 1024 ** 4;

/** Chunks of a disk, and their bytes, by what became of them. */
const countFields = {
  bytesRead: count,
  chunksRead: count,
  /** Zero: found in the data, or said by the source. */
  bytesZero: count,
  chunksZero: count,
  /** Equal to the parent's. */
  bytesUnchanged: count,
  chunksUnchanged: count,
  /** In the repository already. */
  bytesDeduplicated: count,
  chunksDeduplicated: count,
  /** New: raw bytes, and what they take as blobs. */
  bytesStored: count,
  bytesPacked: count,
  chunksStored: count,
};

const kind = z.enum(["full", "incremental", "rescan"]);

const layerSchema = z
  .strictObject({
    layer: uuid,
    /** By which `openLayer` checks it; hexadecimal. */
    digest: digestText,
    storedBytes: count,
  })
  .readonly();

const diskSchema = z
  .strictObject({
    name,
    /** Bytes. */
    size: count.min(1).max(DISK_SIZE_MAX),
    chunkSize: z.int().min(ChunkSize.min).max(ChunkSize.max),
    kind,
    /** Why this kind, for people. */
    reason: shortText,
    /** Newest first; the newest mention of a chunk wins, what none mentions is zero. */
    layers: z.array(layerSchema).max(LAYERS_MAX).readonly(),
    /** The source's bitmap that counts changes since this generation, if there is one. */
    bitmap: shortText.optional(),
    counts: z.strictObject(countFields).readonly(),
  })
  .readonly();

export type ManifestDisk = z.infer<typeof diskSchema>;

const parentSchema = z.strictObject({ generation: uuid7, digest: digestText }).readonly();

const manifestSchema = z
  .strictObject({
    format: z.literal(1),
    repository: uuid,
    generation: uuid7,
    source: name,
    /** Whose begin and end records stand in `runs/`. */
    run: uuid,
    /** The generation whose layers this one stands on, and the SHA-256 of its stored manifest. */
    parent: parentSchema.nullable(),
    /** Counts the generations of a source, from 1. */
    sequence: count.min(1),
    kind,
    reason: shortText,
    /** When the run began, when the disks stood still, when this was written; by the store's clock. */
    startedAt: timeText,
    frozenAt: timeText,
    committedAt: timeText,
    consistency: z.enum(["filesystem", "crash", "unknown"]),
    tags: z
      .record(shortText, shortText)
      .refine((tags) => Object.keys(tags).length <= TAGS_MAX, `more than ${TAGS_MAX} tags`)
      .readonly(),
    disks: z.array(diskSchema).min(1).max(DISKS_MAX).readonly(),
    stats: z
      .strictObject({
        ...countFields,
        seconds: z.number().nonnegative(),
        /** Layers and indexes written; not this manifest. */
        metadataBytes: count,
        peakRssBytes: count,
        /** Requests sent until here, by operation. */
        requests: z.record(shortText, count).readonly(),
      })
      .readonly(),
    /** Program and version that wrote it. */
    writer: shortText,
  })
  .readonly()
  .superRefine((manifest, context) => {
    const why = manifestConflict(manifest);
    if (why !== undefined) context.addIssue(why);
  });

/** The commit of one generation (FORMAT.md, "Manifest"). */
export type Manifest = z.infer<typeof manifestSchema>;

/** A manifest that is stored, with what its children call it by. */
export type StoredManifest = Manifest & {
  /** SHA-256 of the stored bytes, hexadecimal. */
  readonly digest: string;
  readonly storedBytes: number;
};

/** Why fields that are each right do not go together. */
function manifestConflict(manifest: z.input<typeof manifestSchema>): string | undefined {
  const { kind, parent, generation, disks } = manifest;
  if (kind !== "full" && parent === null) return `${kind} without a parent`;
  if (parent !== null && parent.generation >= generation) return "the parent is not older";
  const names = new Set(disks.map((disk) => disk.name));
  return names.size < disks.length ? "two disks of one name" : undefined;
}

/**
 * The bytes to store, read back before they are given out.
 * @throws AppError E_MANIFEST (bug) for a manifest that its own schema refuses.
 */
export function encodeManifest(repository: Repository, manifest: Manifest): Buffer {
  const key = generationKey(manifest.source, manifest.generation);
  const checked = manifestSchema.safeParse(manifest);
  if (!checked.success) throw brokenError(manifest, checked.error);
  const plain = encodeRecord(checked.data); // its fields in the schema's order, whatever order they came in
  const stored = repository.sealer.sealObject("manifest", key, plain);
  try {
    const back = openManifest(repository, manifest.source, manifest.generation, stored);
    if (encodeRecord(back).equals(plain) && stored.length <= MANIFEST_SIZE_MAX) return stored;
  } catch (error) {
    throw brokenError(manifest, error);
  }
  throw brokenError(manifest);
}

/**
 * The manifest in stored bytes, held against the place it was found in (R15).
 *
 * @throws AppError E_RECORD, E_SEAL, E_MISPLACED (corrupt).
 */
export function decodeManifest(
  repository: Repository,
  source: string,
  generation: string,
  stored: Uint8Array,
): StoredManifest {
  const manifest = openManifest(repository, source, generation, stored);
  return { ...manifest, digest: hash("sha256", stored), storedBytes: stored.length };
}

function openManifest(
  repository: Repository,
  source: string,
  generation: string,
  stored: Uint8Array,
): Manifest {
  const key = generationKey(source, generation);
  const plain = repository.sealer.openObject("manifest", key, stored);
  const manifest = parseRecord(manifestSchema, plain, `manifest ${key}`);
  const home = repository.config.repository;
  if (manifest.generation === generation && manifest.source === source && manifest.repository === home)
    return manifest;
  throw new AppError("corrupt", "E_MISPLACED", `The manifest ${key} belongs elsewhere and was put there`, {
    key,
    repository: manifest.repository,
    source: manifest.source,
    generation: manifest.generation,
  });
}

function brokenError(manifest: Manifest, cause?: unknown): AppError {
  const message = `The manifest of ${manifest.generation} does not read back as it was written`;
  return new AppError("bug", "E_MANIFEST", message, { generation: manifest.generation }, cause);
}
