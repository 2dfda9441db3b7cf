import type { Manifest } from "../repository/manifest.ts";

/** A generation in `--json` documents; README.md, "JSON", promises these fields. */
export function generationDocument(manifest: Manifest): object {
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
