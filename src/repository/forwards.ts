import { MiB } from "../bytes/size.ts";
import { AppError, hasCode } from "../errors.ts";
import { BlockCache } from "./block-cache.ts";
import type { Repository } from "./config.ts";
import { type Forward, decodeForward, FORWARD_MAX, forwardError } from "./forward.ts";
import { forwardKey, parseKey, Prefix } from "./names.ts";
import type { PackRef } from "./pack-directory.ts";
import { SharedCalls } from "./shared-calls.ts";

/** Decoded forwards that nobody uses right now; one of 300 slots takes about 30 KiB. */
const CACHE_BYTES = 16 * MiB;

/** More for one pack are not looked at: each adds to what those before did not cover, so that two are rare already. */
const PER_PACK_MAX = 64;

/**
 * The forwards of a repository, as known by one LIST when they are first needed. Memory is a name for each forward, and
 * a bounded cache of their content.
 */
export class Forwards {
  readonly #repository: Repository;
  readonly #cache = new BlockCache(CACHE_BYTES);
  readonly #lists = new SharedCalls<ReadonlyMap<string, readonly string[]>>();
  /** Of all packs, by one LIST. */
  #listed: ReadonlyMap<string, readonly string[]> | undefined;
  /** Of packs that were looked for again. */
  readonly #renewed = new Map<string, readonly string[]>();

  constructor(repository: Repository) {
    this.#repository = repository;
  }

  /** Names of a pack's forwards. @throws errors of the store. */
  async ids(pack: string, signal: AbortSignal): Promise<readonly string[]> {
    const renewed = this.#renewed.get(pack);
    if (renewed !== undefined) return renewed;
    this.#listed ??= await this.#lists.join("", signal, (shared) => this.#list(Prefix.forwards, shared));
    return this.#listed.get(pack) ?? [];
  }

  /** The same, looked for once more: a pack may have been rewritten since the LIST. */
  async idsNow(pack: string, signal: AbortSignal): Promise<readonly string[]> {
    const prefix = `${Prefix.forwards}${pack}/`;
    const found = await this.#lists.join(pack, signal, (shared) => this.#list(prefix, shared));
    const ids = found.get(pack) ?? [];
    this.#renewed.set(pack, ids);
    return ids;
  }

  /**
   * R10: a forward of the pack that a layer names. Its directory is the one whose digest the layer names; so what it says
   * of ids, lengths and checksums is as good as if it came from the pack.
   *
   * @throws AppError E_NO_OBJECT (notFound): replaced or removed since it was listed; E_FORWARD, E_SEAL and their like
   *   (corrupt).
   */
  async load(ref: PackRef, id: string, signal: AbortSignal): Promise<Forward> {
    const key = forwardKey(ref.pack, id);
    let forward = this.#cache.get(key) as Forward | undefined;
    if (forward === undefined) {
      const bytes = await this.#repository.store.get(key, FORWARD_MAX, signal);
      forward = decodeForward(this.#repository, key, bytes);
      this.#cache.set(key, forward, memoryOf(forward));
    }
    const { directory } = forward;
    if (
      directory.pack !== ref.pack ||
      !directory.digest.equals(ref.digest) ||
      directory.slotCount !== ref.slotCount ||
      directory.blobBytes !== ref.blobBytes
    ) {
      throw forwardError(`forward ${key}`, "its directory is not the one that the layer names");
    }
    return forward;
  }

  /**
   * As `load`, for whoever has other forwards to try.
   * @returns the failure when the forward is gone or damaged.
   */
  async tryLoad(ref: PackRef, id: string, signal: AbortSignal): Promise<Forward | AppError> {
    try {
      return await this.load(ref, id, signal);
    } catch (error) {
      if (error instanceof AppError && (error.kind === "corrupt" || hasCode(error, "E_NO_OBJECT")))
        return error;
      throw error;
    }
  }

  async #list(prefix: string, signal: AbortSignal): Promise<ReadonlyMap<string, readonly string[]>> {
    const found = new Map<string, string[]>();
    for await (const { key } of this.#repository.store.list(prefix, signal)) {
      const name = parseKey(key);
      if (name?.type !== "forward") continue;
      const ids = found.get(name.pack);
      if (ids === undefined) found.set(name.pack, [name.id]);
      else if (ids.length < PER_PACK_MAX) ids.push(name.id);
    }
    return found;
  }
}

function memoryOf({ directory, storedDirectory, ways }: Forward): number {
  return directory.memoryBytes + storedDirectory.length + ways.memoryBytes;
}
