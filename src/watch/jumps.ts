import { formatSize, MiB } from "../bytes/size.ts";
import type { Manifest } from "../repository/manifest.ts";

/** Less new data than this tells nothing, bytes. */
const BYTES_MIN = 32 * MiB;

/** Generations before that are needed for a comparison, and how many are looked at. */
const EARLIER_MIN = 3;
export const EARLIER_MAX = 7;

/** So many times what is usual is a jump. */
const GROWTH = 5;

/** New data that takes this part of its size, where it used to take no more than that one. */
const DENSE = 0.95;
const LIGHT = 0.75;

export interface Jump {
  readonly kind: "growth" | "entropy";
  readonly message: string;
}

/**
 * What is unusual about the newest generation of a source, compared with the median of those before.
 *
 * @param manifests of one source, oldest first. A full generation is compared with nothing: it brings everything.
 */
export function jumpsOf(manifests: readonly Pick<Manifest, "kind" | "source" | "stats">[]): Jump[] {
  const newest = manifests.at(-1);
  if (newest === undefined || newest.kind === "full" || newest.stats.bytesStored < BYTES_MIN) return [];
  const earlier = manifests.slice(-1 - EARLIER_MAX, -1).filter(({ kind }) => kind !== "full");
  if (earlier.length < EARLIER_MIN) return [];
  const { bytesStored, bytesPacked } = newest.stats;
  const jumps: Jump[] = [];
  const usual = median(earlier.map(({ stats }) => stats.bytesStored));
  if (bytesStored > GROWTH * Math.max(usual, BYTES_MIN / GROWTH)) {
    const message = `The latest generation of ${newest.source} brought ${formatSize(bytesStored)} of new data; ${formatSize(usual)} are usual`;
    jumps.push({ kind: "growth", message });
  }
  const ratios = earlier
    .filter(({ stats }) => stats.bytesStored > 0)
    .map(({ stats }) => stats.bytesPacked / stats.bytesStored);
  const ratio = bytesPacked / bytesStored;
  if (ratios.length >= EARLIER_MIN && ratio >= DENSE && median(ratios) <= LIGHT) {
    const percent = (part: number): string => `${Math.round(part * 100)}%`;
    const message = `New data of ${newest.source} does not compress any more: it takes ${percent(ratio)} of its size, ${percent(median(ratios))} are usual; if nobody knows why, somebody may be encrypting it`;
    jumps.push({ kind: "entropy", message });
  }
  return jumps;
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
