import { AppError } from "../errors.ts";
import type { Repository } from "./config.ts";
import type { Layer } from "./layer-object.ts";
import { openEncoded, openLayer } from "./layer-reader.ts";
import { needsTail, planMerge } from "./layer-stack.ts";
import { walkLayers } from "./layer-walk.ts";
import { encodeLayer, LayerStream, LayerWriter, PUT_MAX, putLayer, type LayerRef } from "./layer-writer.ts";
import { layerKey } from "./names.ts";
import type { PackRef } from "./pack-directory.ts";

/**
 * Makes one layer of several and stores it. Segments are read, merged and sent as they come; memory is a segment a
 * layer, the parts of the upload and an entry for each pack that is still named.
 *
 * The result means, above whatever lies below, exactly what the layers meant: where one of them ended the lookup by
 * its disk's size, the result says zero (R9).
 *
 * @param layers newest first, neighbours in their stack; the result has the size of the newest one's disk.
 * @param bottom true when nothing lies below: only then zeros need not be mentioned.
 * @throws AppError E_LAYER, E_SEAL (corrupt); errors of the store.
 */
export async function mergeLayers(
  repository: Repository,
  layers: readonly Layer[],
  bottom: boolean,
  signal: AbortSignal,
): Promise<LayerRef> {
  const disk = layers[0]!;
  const writer = new LayerWriter(disk.size, disk.chunkSize);
  const stream = new LayerStream(writer, repository.sealer);
  const bytes = mergedBytes(layers, bottom, writer, stream, signal);
  const key = layerKey(stream.layer);
  const most = layers.reduce((sum, layer) => sum + layer.ref.storedBytes, 0);
  if (most > PUT_MAX) {
    await repository.store.putStream(key, bytes, signal);
  } else {
    const parts: Buffer[] = [];
    for await (const part of bytes) parts.push(part);
    await repository.store.put(key, Buffer.concat(parts), signal);
  }
  return stream.ref;
}

async function* mergedBytes(
  layers: readonly Layer[],
  bottom: boolean,
  writer: LayerWriter,
  stream: LayerStream,
  signal: AbortSignal,
): AsyncGenerator<Buffer, void> {
  const refs = new Map<string, PackRef>();
  yield stream.header();
  const { chunks } = layers[0]!;
  for await (const answer of walkLayers(layers, layers[0]!, 0, chunks, signal)) {
    if (answer.is === "data") {
      const packRef = await answer.layer.packOf(answer, signal);
      if (!refs.has(packRef.pack)) refs.set(packRef.pack, packRef);
      writer.add(answer.first, answer.count, { pack: packRef.pack, slot: answer.slot });
    } else if (answer.is === "zero" && !bottom) {
      writer.add(answer.first, answer.count, "zero");
    }
    yield* stream.full();
  }
  yield* stream.end((pack) => refs.get(pack)!);
}

/**
 * Puts what a run found out about a disk on top of its parent's stack, merging as `planMerge` says.
 *
 * @param writer for the disk as it is now.
 * @param packRef of every pack that was added; each must be complete (R11).
 * @param parent its size in bytes and its layers, newest first; undefined for a full.
 * @returns the new stack, newest first. It is the parent's own when nothing was mentioned and the size is the same.
 * @throws AppError E_LAYER_TAIL (bug) when the size changed and not every chunk was mentioned that must be (R9);
 *   those of `mergeLayers`.
 */
export async function storeStack(
  repository: Repository,
  writer: LayerWriter,
  packRef: (pack: string) => PackRef,
  parent: { readonly size: number; readonly layers: readonly LayerRef[] } | undefined,
  signal: AbortSignal,
): Promise<readonly LayerRef[]> {
  const { size, chunkSize } = writer.geometry;
  const tail = needsTail(parent?.size, size, chunkSize);
  if (tail !== undefined && !writer.mentionsAllFrom(tail)) {
    throw new AppError(
      "bug",
      "E_LAYER_TAIL",
      `The disk's size changed, and not every chunk from ${tail} on is mentioned`,
    );
  }
  const below = parent?.layers ?? [];
  if (writer.mentioned === 0 && parent?.size === size) return below;
  const encoded = encodeLayer(writer, repository.sealer, packRef);
  const stack = [encoded.ref, ...below];
  const merged = planMerge(stack.map((ref) => ref.storedBytes));
  if (merged === 1) return [await putLayer(repository, encoded, signal), ...below];
  const layers = [await openEncoded(encoded, repository.sealer, signal)];
  for (const ref of stack.slice(1, merged)) layers.push(await openLayer(repository, ref, signal));
  const ref = await mergeLayers(repository, layers, merged === stack.length, signal);
  return [ref, ...stack.slice(merged)];
}
