import { expect, test, vi } from "vitest";
import type { Extent } from "../../../src/disk/disk.ts";
import { AppError } from "../../../src/errors.ts";
import { ChunkType, Command } from "../../../src/nbd/constants.ts";
import type { LentBytes, ServedDisk } from "../../../src/nbd/server/served-disk.ts";
import { patterned } from "../../support/memory-disk.ts";
import { RawNbdClient } from "../../support/raw-nbd-client.ts";
import { serve } from "../../support/serve.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
/** Who reads behind it is told of an error, but not before the others have been lent what they asked for. */
const BAD_AT = 3 * MiB;

/** A disk that lends in pieces of 64 KiB, and knows what is out. Every second MiB is a piece of its own. */
class LendingDisk implements ServedDisk {
  readonly size = 4 * MiB;
  readonly readOnly = true;
  readonly blockSize = { minimum: 1, preferred: 4096, maximum: 4 * MiB };
  readonly bytes = patterned(this.size);
  readonly read = vi.fn<ServedDisk["read"]>();
  lent = 0;
  out = 0;

  async lend(offset: number, length: number): Promise<LentBytes> {
    await new Promise(setImmediate);
    if (offset >= BAD_AT) throw new AppError("unavailable", "E_STORE", "The store is away");
    await new Promise(setImmediate);
    await new Promise(setImmediate);
    const pieces: Buffer[] = [];
    for (let at = offset; at < offset + length; at += 64 * KiB) {
      pieces.push(this.bytes.subarray(at, Math.min(at + 64 * KiB, offset + length)));
    }
    this.lent++;
    this.out++;
    let isOut = true;
    const release = (): void => {
      expect(isOut).toBe(true);
      isOut = false;
      this.out--;
    };
    return { pieces, release };
  }

  /** Alternately data and zeros, so that a large read is of several pieces. */
  async *extents({ offset, length }: { offset: number; length: number }): AsyncGenerator<Extent> {
    await Promise.resolve();
    for (let at = offset; at < offset + length;) {
      const end = Math.min(at - (at % (256 * KiB)) + 256 * KiB, offset + length);
      yield { offset: at, length: end - at, state: (at / (256 * KiB)) & 1 ? "zero" : "data" };
      at = end;
    }
  }
}

async function connected(path: string, style: "simple" | "structured"): Promise<RawNbdClient> {
  const client = await RawNbdClient.connect(path);
  await client.go("disk", style, []);
  return client;
}

test("what a disk lends is sent without being read, and given back when it is out", async () => {
  const disk = new LendingDisk();
  const { path } = await serve({ disk });
  const simple = await connected(path, "simple");
  simple.request(Command.READ, { offset: 1000, length: 200_000 });
  expect(await simple.simpleReply()).toMatchObject({ error: 0 });
  expect((await simple.read(200_000)).equals(disk.bytes.subarray(1000, 201_000))).toBe(true);
  const structured = await connected(path, "structured");
  structured.request(Command.READ, { offset: 0, length: MiB });
  const chunks = await structured.chunks();
  expect(chunks.map(({ type }) => type)).toEqual([
    ChunkType.OFFSET_DATA,
    ChunkType.OFFSET_HOLE,
    ChunkType.OFFSET_DATA,
    ChunkType.OFFSET_HOLE,
  ]);
  expect(chunks[2]!.payload.subarray(8).equals(disk.bytes.subarray(512 * KiB, 768 * KiB))).toBe(true);
  await vi.waitUntil(() => disk.out === 0);
  expect(disk.lent).toBe(3);
  expect(disk.read).not.toHaveBeenCalled();
});

test("so is what was lent for a read that failed in another place, and for a client that is gone", async () => {
  const disk = new LendingDisk();
  const { path } = await serve({ disk });
  const client = await connected(path, "structured");
  client.request(Command.READ, { offset: 2 * MiB, length: 2 * MiB });
  const chunks = await client.chunks();
  expect(chunks).toMatchObject([{ type: ChunkType.ERROR }]);
  expect(disk.lent).toBeGreaterThan(1);
  await vi.waitUntil(() => disk.out === 0);

  const gone = await connected(path, "simple");
  for (let count = 0; count < 12; count++) gone.request(Command.READ, { offset: 0, length: 3 * MiB });
  await vi.waitUntil(() => disk.out > 8); // it does not receive
  gone.socket.destroy();
  await vi.waitUntil(() => disk.out === 0);
});
