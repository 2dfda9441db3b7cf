import { createHash } from "node:crypto";
import { MiB } from "../bytes/size.ts";
import { AppError, hasCode } from "../errors.ts";
import { BlockCache } from "./block-cache.ts";
import type { Repository } from "./config.ts";
import type { LayerRef } from "./layer-writer.ts";
import { Layer, type LayerBytes } from "./layer-object.ts";
import { damaged, decodeFooter, decodeTrailer, HEADER_SIZE, LAYER_VERSION, TRAILER_SIZE } from "./layer.ts";
import { layerKey } from "./names.ts";
import type { Sealer } from "./sealing.ts";

/** Read at once when a layer is opened: all of most layers, the index of any. */
const TAIL_SIZE = MiB;

/**
 * Opens a layer in one request, or in two when its index is long. Nothing of it is believed before its digest was
 * checked: footer and trailer against `ref.digest` here, every segment and page against the footer when it is read.
 *
 * @param cache keeps decoded blocks; shared by the layers of a disk.
 * @throws AppError E_LAYER_MISSING, E_LAYER, E_SEAL (corrupt), E_LAYER_VERSION (usage); errors of the store.
 */
export async function openLayer(
  repository: Repository,
  ref: LayerRef,
  signal: AbortSignal,
  cache: BlockCache = new BlockCache(),
): Promise<Layer> {
  return readLayer(storedLayer(repository, ref), ref, repository.sealer, cache, signal);
}

/** Opens a layer that was encoded and not stored yet. */
export async function openEncoded(
  encoded: { readonly ref: LayerRef; readonly parts: readonly Buffer[] },
  sealer: Sealer,
  signal: AbortSignal,
): Promise<Layer> {
  return readLayer(fromWhole(Buffer.concat(encoded.parts)), encoded.ref, sealer, new BlockCache(), signal);
}

function storedLayer(repository: Repository, ref: LayerRef): LayerBytes {
  const key = layerKey(ref.layer);
  return {
    async tail(length, signal) {
      try {
        return await repository.store.getTail(key, length, signal);
      } catch (error) {
        if (!hasCode(error, "E_NO_OBJECT")) throw error;
        throw new AppError(
          "corrupt",
          "E_LAYER_MISSING",
          `The layer ${ref.layer} is gone from the repository`,
          {},
          error,
        );
      }
    },
    async range(offset, length, signal) {
      const into = Buffer.allocUnsafe(length);
      await repository.store.getRange(key, offset, into, signal);
      return into;
    },
  };
}

async function readLayer(
  bytes: LayerBytes,
  ref: LayerRef,
  sealer: Sealer,
  cache: BlockCache,
  signal: AbortSignal,
): Promise<Layer> {
  const what = `layer ${ref.layer}`;
  const tail = await bytes.tail(Math.min(ref.storedBytes, TAIL_SIZE), signal);
  if (tail.size !== ref.storedBytes || tail.size < HEADER_SIZE + TRAILER_SIZE) {
    throw damaged(what, "it does not have the size that the manifest says", {
      size: tail.size,
      expected: ref.storedBytes,
    });
  }
  const whole = tail.bytes.length === tail.size ? tail.bytes : undefined;
  const trailer = tail.bytes.subarray(-TRAILER_SIZE);
  const { footerLength, version } = decodeTrailer(trailer, what);
  const footerOffset = tail.size - TRAILER_SIZE - footerLength;
  if (footerOffset < HEADER_SIZE)
    throw damaged(what, "its index is longer than the object", { footerLength });
  const inTail = tail.bytes.length - TRAILER_SIZE - footerLength;
  const stored =
    inTail >= 0
      ? tail.bytes.subarray(inTail, inTail + footerLength)
      : await bytes.range(footerOffset, footerLength, signal);
  if (createHash("sha256").update(stored).update(trailer).digest("hex") !== ref.digest) {
    throw damaged(what, "its index is not the one the manifest names");
  }
  checkVersion(version, what);
  const footer = decodeFooter(
    sealer.openObject("layer", layerKey(ref.layer), stored),
    footerOffset - HEADER_SIZE,
    what,
  );
  return new Layer(ref, footer, whole === undefined ? bytes : fromWhole(whole), sealer, cache);
}

function fromWhole(whole: Buffer): LayerBytes {
  return {
    tail: (length) => Promise.resolve({ bytes: whole.subarray(-length), size: whole.length }),
    range: (offset, length) => Promise.resolve(whole.subarray(offset, offset + length)),
  };
}

function checkVersion(version: number, what: string): void {
  if (version === LAYER_VERSION) return;
  throw new AppError(
    "usage",
    "E_LAYER_VERSION",
    `The ${what} has version ${version}; update blockhaul to read it`,
  );
}
