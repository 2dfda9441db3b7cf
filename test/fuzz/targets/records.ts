import { deepStrictEqual } from "node:assert";
import { decodeConfig, type Repository } from "../../../src/repository/config.ts";
import { decodeCondemned, readCondemned } from "../../../src/repository/condemned.ts";
import { readDamaged, recordDamaged } from "../../../src/repository/damaged.ts";
import { decodeDrill } from "../../../src/repository/drills.ts";
import { decodeForgotten } from "../../../src/repository/forgotten.ts";
import { decodeHold } from "../../../src/repository/holds.ts";
import { decodeKeySlot } from "../../../src/repository/keys.ts";
import { DEFAULT_LEASE, acquireLease } from "../../../src/repository/leases.ts";
import { decodeManifest } from "../../../src/repository/manifest.ts";
import { livePins } from "../../../src/repository/pins.ts";
import { encodeRecord } from "../../../src/repository/record.ts";
import { beginRun } from "../../../src/repository/runs.ts";
import { hasCode } from "../../../src/errors.ts";
import { MiB } from "../../../src/bytes/size.ts";
import type { MemoryStore } from "../../support/memory-store.ts";
import { memoryRepository, TEST_REPOSITORY } from "../../support/memory-repository.ts";
import { vectors } from "../../support/vectors.ts";
import { mutate } from "../mutate.ts";
import { mutateJson } from "../mutate-json.ts";
import { Broken, type FuzzTarget } from "../target.ts";

type MemoryRepository = Repository & { readonly store: MemoryStore };

const never = new AbortController().signal;
const RUN = "019aa94f-0000-7000-8000-00000000000a";
const GENERATION = "019aa950-0000-7000-8000-000000000002";
/** R14: what scrypt may take, whatever a slot asks for. */
const SCRYPT_MAX = 256 * MiB;
const SCRYPT_PASSES_MAX = 4;
/** Records are at most 4 MiB, their text and their checksum's text the same again. */
const ALLOCATES_MAX = 48 * MiB;

interface Vectors {
  readonly source: string;
  readonly generation: string;
  readonly drill: string;
  readonly key: string;
  readonly repository: string;
  readonly pass: readonly { readonly hex: string; readonly encrypted?: boolean }[];
  readonly fail: readonly { readonly hex: string }[];
}

/** What is stored, in a plain repository: right ones, and those that must be refused, from which more are made. */
function stored(name: string): { readonly vectors: Vectors; readonly seeds: Buffer[] } {
  const all = vectors(name) as Vectors;
  const plain = all.pass.filter(({ encrypted }) => encrypted !== true);
  return { vectors: all, seeds: [...plain, ...all.fail].map(({ hex }) => Buffer.from(hex, "hex")) };
}

/** The document of a record, without its checksum. */
function documentOf(record: Buffer): Buffer {
  return Buffer.from(record.toString("utf8").replace(/,"sha256":"[0-9a-f]*"\}\n$/, "}"));
}

/** As stored bytes, changed anywhere; and as a document, changed and then given its checksum. */
function both(name: string, seeds: readonly Buffer[], decode: FuzzTarget["decode"]): FuzzTarget[] {
  const checked: FuzzTarget["decode"] = (input, random) => {
    let document: unknown;
    try {
      document = JSON.parse(input.toString("utf8"));
    } catch {
      document = undefined;
    }
    const fits = document !== null && typeof document === "object" && !Array.isArray(document);
    return decode(
      fits && Object.keys(document as object).length > 0
        ? encodeRecord(document as Record<string, unknown>)
        : input,
      random,
    );
  };
  return [
    { name, seeds, mutate, decode, allocatesMax: ALLOCATES_MAX },
    {
      name: `${name}, with its checksum`,
      seeds: seeds.map(documentOf),
      mutate: mutateJson,
      decode: checked,
      allocatesMax: ALLOCATES_MAX,
    },
  ];
}

/** Every record of the repository that is read from the store. */
export async function recordTargets(): Promise<FuzzTarget[]> {
  const config = stored("config");
  const manifests = stored("manifests");
  const holds = stored("holds");
  const drills = stored("drills");
  const keys = stored("keys");
  const condemned = stored("condemned");
  const forgotten = stored("forgotten");
  const repository = memoryRepository();
  return [
    ...both("config", config.seeds, (input) => void decodeConfig(input, "fuzz")),
    ...both("manifest", manifests.seeds, (input) => {
      const { source, generation } = manifests.vectors;
      decodeManifest(repository, source, generation, input);
    }),
    ...both("hold", holds.seeds, (input) => {
      const { source, generation } = holds.vectors;
      decodeHold(repository, source, generation, input);
    }),
    ...both("drill", drills.seeds, (input) => {
      const { source, drill } = drills.vectors;
      decodeDrill(repository, source, drill, input);
    }),
    ...both("key slot", keys.seeds, (input) => {
      const { scrypt } = decodeKeySlot(input, keys.vectors.repository, keys.vectors.key);
      const bytes = 128 * scrypt.n * scrypt.r;
      if (!(bytes <= SCRYPT_MAX && scrypt.p <= SCRYPT_PASSES_MAX))
        throw new Broken(`scrypt of ${bytes} bytes`);
    }),
    ...both("condemned", condemned.seeds, async (input) => {
      const { key } = condemned.vectors;
      const { repository: other } = await storedAs(key, input);
      decodeCondemned(other, key, input);
      await readCondemned(other, never);
    }),
    ...both("forgotten", forgotten.seeds, (input) => {
      const { source, generation } = forgotten.vectors;
      decodeForgotten(repository, source, generation, input);
    }),
    ...both("damaged", [await damagedSeed()], async (input) => {
      const { repository: other } = await storedAs(`damaged/${DAMAGED_PACK}/${RUN}.json`, input);
      await readDamaged(other, never);
    }),
    ...both("run", [await runSeed()], async (input) => {
      const { repository: other } = await storedAs(`runs/web/${RUN}.begin.json`, input);
      await livePins(other, "web", { graceMs: 1e15, isGone: () => false }, never);
    }),
    ...both("lease", [leaseSeed()], async (input) => {
      const { repository: other, key } = await storedAs(`leases/web/${RUN}`, input);
      await tryLease(other, key, input);
    }),
  ];
}

const DAMAGED_PACK = "c0000000-0000-4000-8000-000000000000";

async function storedAs(key: string, input: Buffer): Promise<{ repository: MemoryRepository; key: string }> {
  const repository = memoryRepository();
  await repository.store.put(key, input, never);
  return { repository, key };
}

async function damagedSeed(): Promise<Buffer> {
  const repository = memoryRepository();
  await recordDamaged(repository, DAMAGED_PACK, [1, 5, 65_535], never);
  return onlyObject(repository);
}

async function runSeed(): Promise<Buffer> {
  const repository = memoryRepository();
  await beginRun(
    repository,
    {
      format: 1,
      repository: TEST_REPOSITORY,
      source: "web",
      run: RUN,
      purpose: "restore",
      startedAt: "2026-11-22T03:00:00.000Z",
      pinned: GENERATION,
      host: "fuzz",
      writer: "fuzz",
    },
    never,
  );
  return onlyObject(repository);
}

function onlyObject(repository: MemoryRepository): Buffer {
  return [...repository.store.objects.values()][0]!.bytes;
}

function leaseSeed(): Buffer {
  return encodeRecord({
    format: 1,
    repository: TEST_REPOSITORY,
    source: "web",
    run: RUN,
    state: "held",
    host: "fuzz",
    pid: 1,
    ttlMs: 120_000,
  });
}

/** A lease that cannot be read counts as held: whatever it says, no other run may have the source at the same time. */
async function tryLease(repository: MemoryRepository, key: string, input: Buffer): Promise<void> {
  const options = {
    ...DEFAULT_LEASE,
    holder: { host: "fuzz", pid: 2 },
    isGone: (): boolean => false,
    settleMs: 1,
  };
  const run = "019aa94f-0000-7000-8000-00000000000b";
  try {
    const lease = await acquireLease(repository, "web", run, options, never);
    await lease.release();
  } catch (error) {
    if (!hasCode(error, "E_LOCKED")) throw error;
    deepStrictEqual(repository.store.objects.get(key)?.bytes, input, "a lease that counts was touched");
  }
}
