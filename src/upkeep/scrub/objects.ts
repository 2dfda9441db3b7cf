import { MiB } from "../../bytes/size.ts";
import { AppError, hasCode } from "../../errors.ts";
import type { RepositoryConfig } from "../../repository/config.ts";
import { digestMatches } from "../../repository/framed-object.ts";
import { decodeKeySlot } from "../../repository/keys.ts";
import { damaged, decodeTrailer, encodeHeader, HEADER_SIZE, TRAILER_SIZE } from "../../repository/layer.ts";
import { openLayer } from "../../repository/layer-reader.ts";
import type { LayerRef } from "../../repository/layer-writer.ts";
import type { ObjectName } from "../../repository/names.ts";
import { decodeRecord } from "../../repository/record.ts";
import { plainSealer } from "../../repository/sealing.ts";
import type { ObjectInfo, ObjectStore } from "../../store/store.ts";

/** How much of an object can be checked by somebody without a key. */
export type Coverage =
  /** Every byte, against a checksum that was written with it. */
  | "whole"
  /** That it begins and ends as such an object does. */
  | "frame"
  /** Nothing but that it is listed: its content is sealed. */
  | "listed";

/** No object that is read whole here is longer, in bytes. */
const OBJECT_MAX = 64 * MiB;

/** Without a key. Of packs see `scrubPack`. */
export function coverageOf(type: ObjectName["type"], encrypted: boolean): Coverage {
  switch (type) {
    case "repository":
    case "key":
    case "pack":
    case "index":
    case "checked":
    case "forward":
      return "whole";
    case "layer":
      return "frame";
    case "generation":
    case "runBegin":
    case "runEnd":
    case "drill":
    case "lease":
    case "condemned":
    case "damaged":
    case "hold":
    case "forgotten":
    case "profile":
      return encrypted ? "listed" : "whole";
  }
}

/**
 * Checks an object that is no pack as far as it can be.
 *
 * @param layerRef what a manifest says of a layer, when manifests can be read: then all of the layer is checked.
 * @throws AppError (corrupt); E_NO_OBJECT (notFound).
 */
export async function scrubObject(
  store: ObjectStore,
  config: RepositoryConfig,
  name: ObjectName,
  { key, size }: ObjectInfo,
  layerRef: LayerRef | undefined,
  signal: AbortSignal,
): Promise<void> {
  if (name.type === "layer") {
    if (layerRef === undefined) await checkLayerFrame(store, key, size, signal);
    else await (await openLayer({ store, config, sealer: plainSealer() }, layerRef, signal)).verify(signal);
    return;
  }
  const bytes = await store.get(key, OBJECT_MAX, signal);
  if (name.type === "index" || name.type === "checked" || name.type === "forward") checkDigest(key, bytes);
  else if (name.type === "key") checkKeySlot(bytes, config, name.id);
  else decodeRecord(bytes, `record ${key}`);
}

/** A slot that an init left which lost its race belongs to another repository, and harms nobody. */
function checkKeySlot(bytes: Buffer, { repository }: RepositoryConfig, id: string): void {
  try {
    decodeKeySlot(bytes, repository, id);
  } catch (error) {
    if (!hasCode(error, "E_MISPLACED")) throw error;
  }
}

async function checkLayerFrame(
  store: ObjectStore,
  key: string,
  size: number,
  signal: AbortSignal,
): Promise<void> {
  const what = `layer ${key}`;
  if (size < HEADER_SIZE + TRAILER_SIZE) throw damaged(what, "it is too short");
  const header = Buffer.alloc(HEADER_SIZE);
  await store.getRange(key, 0, header, signal);
  if (!header.equals(encodeHeader())) throw damaged(what, "it does not begin like a layer");
  const { bytes } = await store.getTail(key, TRAILER_SIZE, signal);
  const { footerLength } = decodeTrailer(bytes, what);
  if (footerLength > size - HEADER_SIZE - TRAILER_SIZE) {
    throw damaged(what, "its index is longer than the object", { footerLength });
  }
}

function checkDigest(key: string, bytes: Buffer): void {
  if (digestMatches(bytes)) return;
  throw new AppError("corrupt", "E_DIGEST", `The object ${key} is damaged: its checksum does not match`, {
    key,
  });
}
