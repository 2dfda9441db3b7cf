import { hash } from "node:crypto";
import { crc32, zstdCompressSync } from "node:zlib";
import { KiB, MiB } from "../../../src/bytes/size.ts";
import { Codec, chunkId, openBlob, sealBlob } from "../../../src/chunk/codec.ts";
import { decodeIndexObject } from "../../../src/repository/index-objects.ts";
import { decodeForward } from "../../../src/repository/forward.ts";
import { openLayer } from "../../../src/repository/layer-reader.ts";
import {
  decodeFooter,
  encodeFooter,
  HEADER_SIZE,
  SEGMENT_RAW_MAX,
  SEGMENT_RUNS_MAX,
  TRAILER_SIZE,
  unpackSegment,
} from "../../../src/repository/layer.ts";
import { layerKey, packKey } from "../../../src/repository/names.ts";
import { PACK_END_SIZE, PACK_HEADER_SIZE } from "../../../src/repository/pack.ts";
import { directoryDigest, SLOT_SIZE, type PackDirectory } from "../../../src/repository/pack-directory.ts";
import { PackDirectories } from "../../../src/repository/pack-reader.ts";
import { memoryRepository } from "../../support/memory-repository.ts";
import { noise } from "../../support/random-disk.ts";
import { vectors } from "../../support/vectors.ts";
import { mutate } from "../mutate.ts";
import { Broken, type FuzzTarget } from "../target.ts";

const never = new AbortController().signal;
const CHUNK = 64 * KiB;

interface Vectors {
  readonly key: string;
  readonly pack: string;
  readonly layer: string;
  readonly pass: readonly { readonly hex: string; readonly encrypted: boolean }[];
  readonly fail: readonly { readonly hex?: string }[];
}

function stored(name: string): { readonly vectors: Vectors; readonly seeds: Buffer[] } {
  const all = vectors(name) as Vectors;
  const plain = all.pass.filter(({ encrypted }) => !encrypted);
  const hexes = [...plain, ...all.fail].flatMap(({ hex }) => hex ?? []);
  return { vectors: all, seeds: hexes.map((hex) => Buffer.from(hex, "hex")) };
}

/** Every binary object of the repository. */
export function objectTargets(): FuzzTarget[] {
  return [...indexTargets(), ...layerTargets(), ...packTargets(), ...forwardTargets(), blobTarget()];
}

function indexTargets(): FuzzTarget[] {
  const { vectors: index, seeds } = stored("indexes");
  const repository = memoryRepository();
  const decode = (input: Buffer): void => {
    for (const directory of decodeIndexObject(repository, index.key, input)) {
      for (let slot = 0; slot < directory.slotCount; slot++) directory.offsetOf(slot);
    }
  };
  // an index object may be 16 MiB; those made here have half a MiB, of which 4 B in 45 are allocated again
  const common = { seeds, mutate, allocatesMax: 4 * MiB };
  return [
    { name: "index", decode, ...common },
    { name: "index, with its checksum", decode: (input) => decode(withDigest(input)), ...common },
  ];
}

function withDigest(input: Buffer): Buffer {
  const object = input.subarray(0, Math.max(0, input.length - 32));
  return Buffer.concat([object, hash("sha256", object, "buffer")]);
}

function layerTargets(): FuzzTarget[] {
  const { vectors: layers, seeds } = stored("layers");
  const decode = async (input: Buffer): Promise<void> => {
    const repository = memoryRepository();
    await repository.store.put(layerKey(layers.layer), input, never);
    const ref = { layer: layers.layer, digest: layerDigest(input), storedBytes: input.length };
    const layer = await openLayer(repository, ref, never);
    await layer.verify(never);
    for await (const run of layer.runs(0, layer.chunks, never)) {
      if (run.count < 1) throw new Broken("a run of no chunks");
    }
  };
  // a footer of 2 MiB, a segment of 1.6 MiB as it is and as runs, the cache, the tail read
  const common = { seeds, mutate, allocatesMax: 32 * MiB };
  return [
    { name: "layer, with its digest", decode, ...common },
    { name: "layer, with every digest", decode: (input) => decode(withBlockDigests(input)), ...common },
    segmentTarget(),
  ];
}

/** By which others name it: of footer and trailer. */
function layerDigest(object: Buffer): string {
  const footer = footerOf(object);
  return hash("sha256", object.subarray(footer.start));
}

function footerOf(object: Buffer): { start: number; end: number } {
  const end = Math.max(0, object.length - TRAILER_SIZE);
  const length = object.length < TRAILER_SIZE ? 0 : object.readUInt32LE(end);
  return { start: Math.max(0, end - length), end };
}

/** As if whoever changed the blocks had written the footer: their digests, and their lengths, fit. */
function withBlockDigests(object: Buffer): Buffer {
  const { start, end } = footerOf(object);
  try {
    const footer = decodeFooter(object.subarray(start, end), start - HEADER_SIZE, "fuzz");
    let offset = HEADER_SIZE;
    const digested = <T extends { storedLength: number }>(block: T): T & { digest: Buffer } => {
      const bytes = object.subarray(offset, (offset += block.storedLength));
      return { ...block, digest: hash("sha256", bytes, "buffer") };
    };
    const segments = footer.segments.map(digested);
    const pages = footer.pages.map(digested);
    const rewritten = encodeFooter({ ...footer, segments, pages });
    return Buffer.concat([object.subarray(0, start), rewritten, object.subarray(end)]);
  } catch {
    return object;
  }
}

/** A segment's runs before compression, behind a header of what the footer says of them. */
function segmentTarget(): FuzzTarget {
  const header = (first: number, end: number, runs: number, rawLength: number, packs: number): Buffer => {
    const bytes = Buffer.alloc(20);
    [first, end, runs, rawLength, packs].forEach((value, at) => bytes.writeUInt32LE(value, 4 * at));
    return bytes;
  };
  const runs = [0, 0x01, 4, 0x06, 0, 10, 0, 0x80, 0x02, 2, 1, 7, 0x81, 0x01];
  const seeds = [
    Buffer.concat([header(0, 200, 4, runs.length, 3), Buffer.from(runs)]),
    Buffer.concat([header(5, 7, 1, 2, 0), Buffer.from([0, 3])]),
    Buffer.concat([header(0, 2 ** 30, 60_000, 120_000, 1), Buffer.alloc(120_000, 1)]),
  ];
  return {
    name: "segment",
    seeds,
    mutate,
    allocatesMax: 16 * MiB,
    decode: (input, random) => {
      if (input.length < 20) return;
      const [first, end, count, rawLength, packs] = [0, 4, 8, 12, 16].map((at) => input.readUInt32LE(at));
      const raw = input.subarray(20);
      const expected = {
        first: first!,
        end: end!,
        // what the footer's own checks let through
        runs: 1 + (count! % SEGMENT_RUNS_MAX),
        rawLength: random(4) === 0 ? rawLength! % SEGMENT_RAW_MAX : raw.length,
      };
      unpackSegment(zstdCompressSync(raw), expected, packs!, "fuzz");
    },
  };
}

function packTargets(): FuzzTarget[] {
  const { vectors: packs, seeds } = stored("packs");
  const decode = async (input: Buffer): Promise<void> => {
    const repository = memoryRepository({ chunkSize: CHUNK });
    await repository.store.put(packKey(packs.pack), input, never);
    const directory = await new PackDirectories(repository, { cacheBytes: MiB }).load(packs.pack, never);
    expectInOrder(directory, input.length);
    await new PackDirectories(repository, { cacheBytes: MiB }).get(directory.ref, never);
  };
  // a directory of 65,536 slots has 2.8 MiB, and 4 B a slot are added
  const common = { seeds, mutate, allocatesMax: 16 * MiB };
  return [
    { name: "pack", decode, ...common },
    { name: "pack, with its checksums", decode: (input) => decode(withTrailer(input)), ...common },
  ];
}

/** Blobs of a directory that was believed follow each other, and lie in the object. */
function expectInOrder(directory: PackDirectory, size: number): void {
  let offset = PACK_HEADER_SIZE;
  for (let slot = 0; slot < directory.slotCount; slot++) {
    if (directory.offsetOf(slot) !== offset)
      throw new Broken(`slot ${slot} is at ${directory.offsetOf(slot)}`);
    offset += directory.storedLength(slot);
    if (offset > size) throw new Broken(`slot ${slot} ends at ${offset} of ${size}`);
    const raw = directory.rawLength(slot);
    if (raw < 1 || raw > CHUNK) throw new Broken(`slot ${slot} is a chunk of ${raw} bytes`);
  }
}

/** As if whoever changed the pack had written its trailer: directory digest and checksum fit. */
function withTrailer(input: Buffer): Buffer {
  if (input.length < PACK_END_SIZE) return input;
  const pack = Buffer.from(input);
  const end = pack.subarray(-PACK_END_SIZE);
  const offset = Number(end.readBigUInt64LE(0) % 2n ** 48n);
  const length = end.readUInt32LE(8);
  const stored = pack.subarray(offset, offset + length);
  if (stored.length === length && length % SLOT_SIZE === 0) directoryDigest(stored).copy(end, 16);
  const checked = pack.subarray(Math.min(pack.length, offset + length), pack.length - 12);
  end.writeUInt32LE(crc32(checked), PACK_END_SIZE - 12);
  return pack;
}

function forwardTargets(): FuzzTarget[] {
  const { vectors: forwards, seeds } = stored("forwards");
  const repository = memoryRepository({ chunkSize: CHUNK });
  const decode = (input: Buffer): void => {
    const { directory, ways } = decodeForward(repository, forwards.key, input);
    for (const { slot, target, to } of ways.moves()) {
      if (slot >= directory.slotCount || to >= target.slotCount)
        throw new Broken(`slot ${slot} leads nowhere`);
      if (ways.placeOf(slot)?.slot !== to) throw new Broken(`slot ${slot} leads to two places`);
    }
  };
  // a directory of 65,536 slots, where each of them went, and as many targets
  const common = { seeds, mutate, allocatesMax: 16 * MiB };
  return [
    { name: "forward", decode, ...common },
    { name: "forward, with its checksum", decode: (input) => decode(withDigest(input)), ...common },
  ];
}

/** A chunk as it is stored, whatever its directory says of it. */
function blobTarget(): FuzzTarget {
  const chunks = [
    noise(1, CHUNK),
    Buffer.alloc(CHUNK, "text and text\n"),
    Buffer.alloc(CHUNK, 7),
    noise(2, 100),
  ];
  const ids = chunks.map((chunk) => chunkId(chunk));
  const blobs = chunks.map((chunk, at) => sealBlob(chunk, ids[at]!));
  return {
    name: "blob",
    seeds: blobs.map(({ bytes }) => bytes),
    mutate,
    allocatesMax: 2 * MiB,
    decode: (input, random) => {
      const codec = random(2) === 0 ? Codec.RAW : Codec.ZSTD;
      const rawLength = random(2) === 0 ? CHUNK : 1 + random(CHUNK);
      const id = ids[random(ids.length)]!;
      const facts = { id, codec, rawLength, storedLength: input.length, crc32: crc32(input) };
      openBlob(input, facts);
    },
  };
}
