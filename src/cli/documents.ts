import type { Holds } from "../repository/holds.ts";
import type { Manifest } from "../repository/manifest.ts";

/** Of a generation that was made just now. */
export const NO_HOLDS: Holds = new Map();

/** A generation in `--json` documents; README.md, "JSON", promises these fields. */
export function generationDocument(manifest: Manifest, holds: Holds): object {
  const hold = holds.get(manifest.generation);
  return {
    generation: manifest.generation,
    source: manifest.source,
    kind: manifest.kind,
    reason: manifest.reason,
    parent: manifest.parent?.generation ?? null,
    sequence: manifest.sequence,
    createdAt: manifest.committedAt,
    consistency: manifest.consistency,
    tags: manifest.tags,
    held: holds.has(manifest.generation)
      ? { heldAt: hold?.heldAt ?? null, reason: hold?.reason ?? null }
      : null,
    disks: manifest.disks.map((disk) => ({
      name: disk.name,
      size: disk.size,
      chunkSize: disk.chunkSize,
      kind: disk.kind,
      reason: disk.reason,
      layers: disk.layers.length,
      counts: disk.counts,
    })),
    stats: manifest.stats,
  };
}
