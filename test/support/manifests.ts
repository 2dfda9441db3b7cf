import { type Manifest } from "../../src/repository/manifest.ts";
import { uuidv7 } from "../../src/repository/names.ts";
import { TEST_REPOSITORY } from "./memory-repository.ts";

const NO_COUNTS = {
  bytesRead: 0,
  chunksRead: 0,
  bytesZero: 0,
  chunksZero: 0,
  bytesUnchanged: 0,
  chunksUnchanged: 0,
  bytesDeduplicated: 0,
  chunksDeduplicated: 0,
  bytesStored: 0,
  bytesPacked: 0,
  chunksStored: 0,
};

/** A full generation of one disk without layers, its id dated `time`; fields may be replaced. */
export function testManifest(time: string, fields: Partial<Manifest> = {}): Manifest {
  const at = new Date(time);
  return {
    format: 1,
    repository: TEST_REPOSITORY,
    generation: uuidv7(at.getTime()),
    source: "web",
    run: uuidv7(at.getTime()),
    parent: null,
    sequence: 1,
    kind: "full",
    reason: "first generation of web",
    startedAt: at.toISOString(),
    frozenAt: at.toISOString(),
    committedAt: at.toISOString(),
    consistency: "crash",
    tags: {},
    disks: [
      {
        name: "vda",
        size: 1,
        chunkSize: 65_536,
        kind: "full",
        reason: "first",
        layers: [],
        counts: NO_COUNTS,
      },
    ],
    stats: { ...NO_COUNTS, seconds: 1, metadataBytes: 0, peakRssBytes: 0, requests: {} },
    writer: "blockhaul 0.1.0",
    ...fields,
  };
}
