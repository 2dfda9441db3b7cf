import { KiB, MiB } from "../../src/bytes/size.ts";
import type { Repository, RepositorySizes } from "../../src/repository/config.ts";
import { masterKeySealer, plainSealer } from "../../src/repository/sealing.ts";
import type { ObjectStore } from "../../src/store/store.ts";
import { MemoryStore } from "./memory-store.ts";

/** Every test of a codec runs with both. */
export const SEALINGS = [
  { name: "plain", encrypted: false },
  { name: "encrypted", encrypted: true },
] as const;

export const TEST_REPOSITORY = "5f0c9a52-3d1b-4c7e-9e63-0b6a0f5d2c11";

/** A repository without its `repository.json`, small in every size. */
export function memoryRepository<Store extends ObjectStore = MemoryStore>(
  options: RepositorySizes & { readonly encrypted?: boolean; readonly store?: Store } = {},
): Repository & { readonly store: Store } {
  const encrypted = options.encrypted ?? false;
  const id = TEST_REPOSITORY;
  return {
    store: options.store ?? (new MemoryStore() as ObjectStore as Store),
    sealer: encrypted ? masterKeySealer(id, Buffer.alloc(32, 7)) : plainSealer(),
    config: {
      format: 1,
      repository: id,
      createdAt: "2026-11-22T03:00:00.000Z",
      hash: "sha256",
      encrypted,
      chunkSize: options.chunkSize ?? 64 * KiB,
      packSize: options.packSize ?? MiB,
      partSize: options.partSize ?? 128 * KiB,
    },
  };
}
