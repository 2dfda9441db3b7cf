import { z } from "zod";
import { KiB } from "../bytes/size.ts";
import { AppError, hasCode } from "../errors.ts";
import type { Repository } from "./config.ts";
import { count, name, timeText, uuid, uuid7 } from "./fields.ts";
import { newUuid, parseKey, Prefix, checkSourceName, profileKey } from "./names.ts";
import { openRecord, type RecordKind, sealRecord } from "./placed-record.ts";

/** A profile is never larger, in bytes as stored. */
const PROFILE_SIZE_MAX = 512 * KiB;
/** Most chunks in a profile: a gibibyte in 64 KiB, 4 GiB in 256 KiB. */
export const PROFILE_CHUNKS_MAX = 16_384;
const DISKS_MAX = 1024;
/** Chunks of the largest disk, in the smallest size. */
const CHUNK_MAX = 2 ** 30;

const profileSchema = z
  .strictObject({
    format: z.literal(1),
    repository: uuid,
    source: name,
    /** The UUID in the key. */
    profile: uuid,
    /** What was read. */
    generation: uuid7,
    /** By the store's clock. */
    recordedAt: timeText,
    disks: z.array(name).min(1).max(DISKS_MAX).readonly(),
    /** In the order of the first read of each chunk: number of the disk above, first chunk, chunks. */
    reads: z
      .array(
        z
          .tuple([count.max(DISKS_MAX - 1), count.max(CHUNK_MAX - 1), count.min(1).max(PROFILE_CHUNKS_MAX)])
          .readonly(),
      )
      .min(1)
      .max(PROFILE_CHUNKS_MAX)
      .readonly(),
  })
  .readonly()
  .refine(
    ({ disks, reads }) =>
      reads.every(([disk]) => disk < disks.length) &&
      reads.reduce((sum, [, , chunks]) => sum + chunks, 0) <= PROFILE_CHUNKS_MAX,
    "it names a disk that it has not, or too many chunks",
  );

/** Which chunks of a source were read, in which order, when it was served (FORMAT.md, "Profiles"). */
export type Profile = z.infer<typeof profileSchema>;

const PROFILE: RecordKind<Profile> = { type: "profile", noun: "profile", schema: profileSchema };

/** What is known of a source's profile. */
export interface KnownProfile {
  /** The newest one that can be read. */
  readonly profile: Profile | undefined;
  /** Of all that there are. */
  readonly keys: readonly string[];
}

/** Looks for a source's profile: a LIST, and mostly one GET. @throws errors of the store; damage is passed over. */
export async function loadProfile(
  repository: Repository,
  source: string,
  signal: AbortSignal,
): Promise<KnownProfile> {
  const found: { key: string; id: string; atMs: number }[] = [];
  const prefix = `${Prefix.profiles}${checkSourceName(source)}/`;
  for await (const { key, lastModified } of repository.store.list(prefix, signal)) {
    const parsed = parseKey(key);
    if (parsed?.type === "profile") found.push({ key, id: parsed.profile, atMs: lastModified.getTime() });
  }
  found.sort((a, b) => b.atMs - a.atMs || (a.key < b.key ? -1 : 1));
  const keys = found.map(({ key }) => key);
  for (const { key, id } of found) {
    try {
      const stored = await repository.store.get(key, PROFILE_SIZE_MAX, signal);
      return { profile: decodeProfile(repository, source, id, stored), keys };
    } catch (error) {
      const passedOver = error instanceof AppError && error.kind === "corrupt";
      if (!passedOver && !hasCode(error, "E_NO_OBJECT")) throw error;
    }
  }
  return { profile: undefined, keys };
}

/** Stores a profile in the place of others, which are deleted once it is there. */
export async function storeProfile(
  repository: Repository,
  content: Pick<Profile, "source" | "generation" | "disks" | "reads">,
  replaced: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  const { store, config } = repository;
  const { source, generation, disks, reads } = content;
  const profile: Profile = {
    format: 1,
    repository: config.repository,
    source,
    profile: newUuid(),
    generation,
    recordedAt: (await store.now(signal)).toISOString(),
    disks,
    reads,
  };
  await store.put(profileKey(source, profile.profile), encodeProfile(repository, profile), signal);
  await store.delete(replaced, signal);
}

/** The bytes to store. @throws AppError E_RECORD (corrupt) for one that its own schema refuses. */
export function encodeProfile(repository: Repository, profile: Profile): Buffer {
  return sealRecord(repository, PROFILE, profileKey(profile.source, profile.profile), profile);
}

/** The profile in stored bytes, held against its place (R15). @throws AppError E_RECORD, E_SEAL, E_MISPLACED (corrupt). */
export function decodeProfile(
  repository: Repository,
  source: string,
  profile: string,
  stored: Uint8Array,
): Profile {
  return openRecord(repository, PROFILE, profileKey(source, profile), stored, { source, profile });
}
