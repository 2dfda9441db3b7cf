import { expect, test, vi } from "vitest";
import { ChunkType, Command } from "../../../src/nbd/constants.ts";
import type { LentBytes, LentPiece, ServedDisk } from "../../../src/nbd/server/served-disk.ts";
import { patterned } from "../../support/memory-disk.ts";
import { RawNbdClient } from "../../support/raw-nbd-client.ts";
import { serve } from "../../support/serve.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

/** A disk that lends in pieces of 64 KiB, four of data and four of zeros by turns, and knows what is out. */
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
    const pieces: LentPiece[] = [];
    for (let at = offset; at < offset + length; at += 64 * KiB) {
      const bytes = this.bytes.subarray(at, Math.min(at + 64 * KiB, offset + length));
      pieces.push({ bytes, zero: ((at / (256 * KiB)) & 1) === 1 });
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
  expect(disk.lent).toBe(2);
  expect(disk.read).not.toHaveBeenCalled();
});

test("what is lent is one piece of data where there would be too many holes", async () => {
  const disk = new LendingDisk();
  disk.lend = async (offset, length) => {
    await Promise.resolve();
    const pieces = Array.from({ length: length / KiB }, (_, index) => {
      const at = offset + index * KiB;
      return { bytes: disk.bytes.subarray(at, at + KiB), zero: (index & 1) === 1 };
    });
    return { pieces, release: () => undefined };
  };
  const { path } = await serve({ disk });
  const client = await connected(path, "structured");
  client.request(Command.READ, { offset: 0, length: 65 * KiB });
  const chunks = await client.chunks();
  expect(chunks.map(({ type }) => type)).toEqual([ChunkType.OFFSET_DATA]);
  expect(chunks[0]!.payload.subarray(8).equals(disk.bytes.subarray(0, 65 * KiB))).toBe(true);
  client.request(Command.READ, { offset: 0, length: 64 * KiB });
  expect(await client.chunks()).toHaveLength(64);
});

test("what was lent for a client that is gone is given back", async () => {
  const disk = new LendingDisk();
  const { path } = await serve({ disk });
  const gone = await connected(path, "simple");
  for (let count = 0; count < 12; count++) gone.request(Command.READ, { offset: 0, length: 3 * MiB });
  await vi.waitUntil(() => disk.out > 8); // it does not receive
  gone.socket.destroy();
  await vi.waitUntil(() => disk.out === 0);
});
