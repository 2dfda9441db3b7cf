import type { Repository } from "../../src/repository/config.ts";
import { encodeForward, type Move } from "../../src/repository/forward.ts";
import { forwardKey, newUuid, packKey } from "../../src/repository/names.ts";
import { type PackDirectory, PackDirectories } from "../../src/repository/pack-reader.ts";
import { type CompletedPack, PackWriter } from "../../src/repository/pack-writer.ts";
import { fetchStoredDirectory } from "../../src/repository/stored-directory.ts";
import type { ObjectStore } from "../../src/store/store.ts";

const never = new AbortController().signal;

/** A pack that was copied to another one, and the forward that says so; both are stored. */
export interface MovedPack {
  readonly old: PackDirectory;
  readonly target: PackDirectory;
  readonly forward: string;
}

/**
 * Copies slots of a pack into a new one, in reverse so that nothing stays in place, and stores the forward.
 *
 * @param slots all of them unless told.
 */
export async function movePack(
  repository: Repository & { readonly store: ObjectStore },
  pack: string,
  slots?: readonly number[],
): Promise<MovedPack> {
  const { store } = repository;
  const old = await new PackDirectories(repository, { cacheBytes: 0 }).load(pack, never);
  const wanted = slots ?? Array.from({ length: old.slotCount }, (_, slot) => slot);
  const completed: CompletedPack[] = [];
  const writer = new PackWriter(
    repository,
    { partsInFlight: 2, onPack: (done) => void completed.push(done) },
    new AbortController(),
  );
  const places = new Map<number, number>();
  for (const slot of wanted.toReversed()) {
    const blob = Buffer.alloc(old.storedLength(slot));
    await store.getRange(packKey(pack), old.offsetOf(slot), blob, never);
    const entry = {
      id: old.idAt(slot),
      rawLength: old.rawLength(slot),
      codec: old.codec(slot),
      crc32: old.crc32(slot),
    };
    places.set(slot, (await writer.append(blob, entry)).slot);
  }
  await writer.finish();
  const target = completed[0]!.directory;
  const moves = wanted.map((slot): Move => ({ slot, target: target.ref, to: places.get(slot)! }));
  return { old, target, forward: await storeForward(repository, old, moves) };
}

/** @returns the id. */
export async function storeForward(
  repository: Repository,
  old: PackDirectory,
  moves: readonly Move[],
): Promise<string> {
  const id = newUuid();
  const key = forwardKey(old.pack, id);
  const storedDirectory = await storedDirectoryOf(repository, old);
  const bytes = encodeForward(repository, key, { directory: old, storedDirectory }, moves);
  await repository.store.put(key, bytes, never);
  return id;
}

/** The stored bytes of the directory of a pack that is there. */
export async function storedDirectoryOf(repository: Repository, directory: PackDirectory): Promise<Buffer> {
  return (await fetchStoredDirectory(repository, directory.ref, never))!.storedDirectory;
}
