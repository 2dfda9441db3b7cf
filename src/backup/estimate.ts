import type { Manifest, ManifestDisk, StoredManifest } from "../repository/manifest.ts";
import { findGeneration } from "../repository/generations.ts";
import { SLOT_SIZE } from "../repository/pack-directory.ts";
import { uuidv7 } from "../repository/names.ts";
import type { RequestCounts } from "../store/store.ts";
import type { DiskWay } from "./plan.ts";
import type { BackupRequest } from "./request.ts";
import { planFrom } from "./run.ts";
import type { DiskOutlook } from "./source.ts";

/** How far back an earlier run of the same kind is looked for, in generations. */
const HISTORY_MAX = 12;

/** Of a stored chunk, bytes: its entry in the pack's directory and in the index, and in the layer. */
const METADATA_PER_CHUNK = 2 * SLOT_SIZE + 40;

/** What a run sends whatever its size; of a first one, measured. GETs come with the parent's layers and packs. */
const REQUESTS_OF_ANY: RequestCounts = {
  GetObject: 8,
  PutObject: 6,
  ListObjectsV2: 9,
  HeadObject: 4,
  ListMultipartUploads: 1,
};

/** Requests that grow with what is uploaded. */
const UPLOADS: ReadonlySet<string> = new Set([
  "CreateMultipartUpload",
  "UploadPart",
  "CompleteMultipartUpload",
]);

/** Bytes: never more than `max`, if nothing stored was found damaged; and `likely`, null where nothing tells. */
export interface Expected {
  readonly max: number;
  readonly likely: number | null;
}

export interface DiskEstimate {
  readonly name: string;
  readonly kind: Manifest["kind"];
  readonly reason: string;
  readonly size: number;
  readonly read: Expected;
  /** Packs and metadata. */
  readonly upload: Expected;
  /** The generation whose run of the same kind `likely` goes by; null when there is none. */
  readonly basis: string | null;
}

/** What the next run would do, read, send and store. */
export interface Estimate {
  readonly source: string;
  readonly disks: readonly DiskEstimate[];
  readonly read: Expected;
  readonly upload: Expected;
  /** By S3 operation, with what is likely uploaded, and with the most. */
  readonly requests: { readonly max: RequestCounts; readonly likely: RequestCounts | null };
}

/**
 * Looks at the source and the repository, and writes nothing.
 *
 * What can be read at most is told by the dirty bitmap or the allocation; what of it is then new and how small it gets, by the
 * newest run of the same kind.
 */
export async function estimateBackup(request: BackupRequest, signal: AbortSignal): Promise<Estimate> {
  const { repository, source } = request;
  const { chunkSize } = repository.config;
  const from = await request.connect(uuidv7(Date.now()), "look", signal);
  try {
    const { ways, latest } = await planFrom(from, request, signal);
    const outlooks = await from.outlook(ways, chunkSize, signal);
    const history = await historyOf(request, latest, signal);
    const disks = [...ways].map(([name, way]) =>
      estimateDisk(name, way, outlooks.get(name)!, history, chunkSize),
    );
    const read = sum(disks.map((disk) => disk.read));
    const upload = sum(disks.map((disk) => disk.upload));
    const kinds = new Set(disks.map(({ kind }) => kind));
    const before = history.find(({ kind }) => kinds.has(kind));
    const requests = (bytes: number): RequestCounts => requestsOf(bytes, disks.length, before, request);
    return {
      source,
      disks,
      read,
      upload,
      requests: {
        max: requests(upload.max),
        likely: upload.likely === null ? null : requests(upload.likely),
      },
    };
  } finally {
    await from.close();
  }
}

/** The newest generations of the source, newest first. */
async function historyOf(
  { repository, source }: BackupRequest,
  latest: StoredManifest | undefined,
  signal: AbortSignal,
): Promise<Manifest[]> {
  const found: Manifest[] = [];
  for (let next = latest; next !== undefined && found.length < HISTORY_MAX;) {
    found.push(next);
    const { parent } = next;
    if (parent === null) break;
    next = await findGeneration(repository, { source, generation: parent.generation }, signal);
  }
  return found;
}

function estimateDisk(
  name: string,
  { kind, reason }: DiskWay,
  { size, readMax, readLikely }: DiskOutlook,
  history: readonly Manifest[],
  chunkSize: number,
): DiskEstimate {
  const before = lastOf(name, kind, history);
  const likely = readLikely ?? before?.disk.counts.bytesRead ?? null;
  const read = { max: readMax, likely: likely === null ? null : Math.min(likely, readMax) };
  const packed = before === undefined || read.likely === null ? null : read.likely * packedShare(before.disk);
  return {
    name,
    kind,
    reason,
    size,
    read,
    upload: {
      max: withMetadata(readMax, readMax, chunkSize),
      likely:
        packed === null ? null : withMetadata(packed, read.likely! * storedShare(before!.disk), chunkSize),
    },
    basis: before?.generation ?? null,
  };
}

function lastOf(
  name: string,
  kind: Manifest["kind"],
  history: readonly Manifest[],
): { readonly generation: string; readonly disk: ManifestDisk } | undefined {
  for (const { generation, disks } of history) {
    const disk = disks.find((one) => one.name === name && one.kind === kind);
    if (disk !== undefined && disk.counts.bytesRead > 0) return { generation, disk };
  }
  return undefined;
}

/** Of what was read: what it took in packs, and what of it was new. */
function packedShare({ counts }: ManifestDisk): number {
  return Math.min(1, counts.bytesPacked / counts.bytesRead);
}

function storedShare({ counts }: ManifestDisk): number {
  return Math.min(1, counts.bytesStored / counts.bytesRead);
}

function withMetadata(packed: number, stored: number, chunkSize: number): number {
  return Math.ceil(packed + Math.ceil(stored / chunkSize) * METADATA_PER_CHUNK);
}

function sum(all: readonly Expected[]): Expected {
  const likely = all.map((one) => one.likely);
  return {
    max: all.reduce((total, one) => total + one.max, 0),
    likely: likely.includes(null) ? null : likely.reduce<number>((total, one) => total + one!, 0),
  };
}

/** @param before an earlier run that did about the same, apart from its uploads. */
function requestsOf(
  bytes: number,
  disks: number,
  before: Manifest | undefined,
  { repository }: BackupRequest,
): RequestCounts {
  const { packSize, partSize } = repository.config;
  const any = { ...(before?.stats.requests ?? REQUESTS_OF_ANY) };
  if (before === undefined) any["PutObject"] = (any["PutObject"] ?? 0) + disks - 1; // a layer each
  const fixed = Object.entries(any).filter(([operation]) => !UPLOADS.has(operation));
  const packs = Math.ceil(bytes / packSize);
  if (packs === 0) return Object.fromEntries(fixed);
  return {
    ...Object.fromEntries(fixed),
    CreateMultipartUpload: packs,
    UploadPart: Math.floor(bytes / partSize) + packs, // the last one of a pack is seldom full
    CompleteMultipartUpload: packs,
  };
}
