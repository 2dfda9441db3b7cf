import { chunkCount } from "../../chunk/grid.ts";
import type { Manifest, ManifestDisk } from "../../repository/manifest.ts";

/** A stretch of a disk, bytes. */
export interface LostRange {
  readonly offset: number;
  readonly length: number;
}

/** What of one disk of one generation cannot be restored. */
export interface Loss {
  readonly source: string;
  readonly generation: string;
  /** When the disks stood still. */
  readonly frozenAt: string;
  readonly disk: string;
  /** Bytes of the disk that are lost, all ranges together. */
  readonly bytes: number;
  /** Ascending, not touching. */
  readonly ranges: readonly LostRange[];
  /** Ranges that are counted in `bytes` but not listed. */
  readonly rangesLeftOut: number;
  /** True when whole layers are lost, and not only chunks. */
  readonly ofLayers: boolean;
}

/** Ranges kept over all disks: about 16 MiB of report at worst. More are only counted. */
const RANGES_MAX = 100_000;

interface Stretch {
  readonly first: number;
  readonly end: number;
}

interface DiskLoss {
  readonly manifest: Manifest;
  readonly disk: ManifestDisk;
  stretches: Stretch[];
  chunksLeftOut: number;
  leftOut: number;
  ofLayers: boolean;
}

/** Collects lost chunks, in any order, and tells them as ranges of bytes. Memory is bounded. */
export class Losses {
  readonly #disks = new Map<string, DiskLoss>();
  readonly #rangesMax: number;
  #ranges = 0;

  constructor(rangesMax: number = RANGES_MAX) {
    this.#rangesMax = rangesMax;
  }

  get empty(): boolean {
    return this.#disks.size === 0;
  }

  /** @param count chunks, at least 1. @param ofLayer the map that says where they live is lost. */
  add(manifest: Manifest, disk: ManifestDisk, first: number, count: number, ofLayer = false): void {
    const key = `${manifest.generation}/${disk.name}`;
    let loss = this.#disks.get(key);
    if (loss === undefined) {
      loss = { manifest, disk, stretches: [], chunksLeftOut: 0, leftOut: 0, ofLayers: false };
      this.#disks.set(key, loss);
    }
    loss.ofLayers ||= ofLayer;
    const last = loss.stretches.at(-1);
    if (last?.end === first) {
      loss.stretches[loss.stretches.length - 1] = { first: last.first, end: first + count };
    } else if (this.#ranges < this.#rangesMax) {
      loss.stretches.push({ first, end: first + count });
      this.#ranges++;
    } else {
      loss.leftOut++;
      loss.chunksLeftOut += count;
    }
  }

  /** Oldest generation first within a source. @param isThere which generations still exist. */
  list(isThere: (generation: string) => boolean): Loss[] {
    return [...this.#disks.values()].filter(({ manifest }) => isThere(manifest.generation)).map(described);
  }
}

function described({ manifest, disk, stretches, chunksLeftOut, leftOut, ofLayers }: DiskLoss): Loss {
  const chunks = chunkCount(disk.size, disk.chunkSize);
  const ranges = merged(stretches).map(({ first, end }) => {
    const offset = first * disk.chunkSize;
    return { offset, length: (end >= chunks ? disk.size : end * disk.chunkSize) - offset };
  });
  return {
    source: manifest.source,
    generation: manifest.generation,
    frozenAt: manifest.frozenAt,
    disk: disk.name,
    bytes: ranges.reduce((sum, { length }) => sum + length, 0) + chunksLeftOut * disk.chunkSize,
    ranges,
    rangesLeftOut: leftOut,
    ofLayers,
  };
}

/** Sorted, with what touches or overlaps made one. */
function merged(stretches: readonly Stretch[]): Stretch[] {
  const result: Stretch[] = [];
  for (const { first, end } of [...stretches].sort((a, b) => a.first - b.first)) {
    const last = result.at(-1);
    if (last === undefined || last.end < first) result.push({ first, end });
    else result[result.length - 1] = { first: last.first, end: Math.max(last.end, end) };
  }
  return result;
}
