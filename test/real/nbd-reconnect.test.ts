import { readFile, writeFile } from "node:fs/promises";
import { expect, onTestFinished, test } from "vitest";
import { KiB, MiB } from "../../src/bytes/size.ts";
import { openNbdSource, type NbdSource } from "../../src/nbd/source.ts";
import { openNbdTarget } from "../../src/nbd/target.ts";
import { parseNbdUri } from "../../src/nbd/uri.ts";
import { temporaryFolder } from "../support/folder.ts";
import type { NbdProcess, NbdProcessOptions } from "../support/nbd-process.ts";
import { startNbdkit } from "../support/nbdkit.ts";

const { signal } = new AbortController();
const PATIENT = { attemptsMax: 1000, baseMs: 5, waitMaxMs: 50, budgetMs: 50_000 };
const PATTERN = ["pattern", "size=256M"];

async function nbdkit(args: readonly string[], options: NbdProcessOptions = {}): Promise<NbdProcess> {
  const server = await startNbdkit(args, options);
  onTestFinished(() => server.stop());
  return server;
}

async function open(server: NbdProcess, retry = PATIENT): Promise<NbdSource> {
  const source = await openNbdSource(parseNbdUri(server.uri), { retry }, signal);
  onTestFinished(() => source.close());
  return source;
}

function expectPattern(bytes: Buffer, offset: number): void {
  for (let at = 0; at < bytes.length; at += 8) {
    if (bytes.readBigUInt64BE(at) !== BigInt(offset + at)) throw new Error(`wrong byte at ${offset + at}`);
  }
}

/** Reads the whole export, 32 reads of 256 KiB under way. @param onRead after each one. */
async function readAll(source: NbdSource, onRead: (count: number) => void): Promise<void> {
  let next = 0;
  let done = 0;
  await Promise.all(
    Array.from({ length: 32 }, async () => {
      const into = Buffer.alloc(256 * KiB);
      while (next < source.size) {
        const offset = next;
        next += into.length;
        await source.read(offset, into, signal);
        expectPattern(into, offset);
        done++;
        onRead(done);
      }
    }),
  );
  expect(done).toBe(source.size / (256 * KiB));
}

test.each([false, true])(
  "a server killed in the middle and started again (TCP: %s) is read to the end",
  async (tcp) => {
    const server = await nbdkit(PATTERN, { tcp });
    const source = await open(server);
    let restarted: Promise<NbdProcess> | undefined;
    await readAll(source, (count) => {
      if (count === 200) restarted = server.kill().then(() => nbdkit(PATTERN, { insteadOf: server }));
    });
    await restarted;
    expect(restarted).toBeDefined();
  },
);

test("a server killed for good is an error that says so", async () => {
  const server = await nbdkit(PATTERN);
  const source = await open(server, { attemptsMax: 4, baseMs: 1, waitMaxMs: 5, budgetMs: 5000 });
  let killed: Promise<void> | undefined;
  const reading = readAll(source, (count) => {
    if (count === 100) killed = server.kill();
  });
  await expect(reading).rejects.toMatchObject({ kind: "source", code: "E_NBD_GONE" });
  await expect(reading).rejects.toThrow(/went away and did not come back/);
  await killed;
});

test("an abort ends the wait for a server that is away", async () => {
  const server = await nbdkit(PATTERN);
  const source = await open(server, {
    attemptsMax: 1000,
    baseMs: 60_000,
    waitMaxMs: 60_000,
    budgetMs: 600_000,
  });
  await server.kill();
  const abort = new AbortController();
  const read = source.read(0, Buffer.alloc(10), abort.signal);
  abort.abort(new Error("enough"));
  await expect(read).rejects.toThrow("enough");
});

test("a server that comes back with another export is refused", async () => {
  const server = await nbdkit(PATTERN);
  const source = await open(server);
  await server.kill();
  await nbdkit(["pattern", "size=128M"], { insteadOf: server });
  const read = source.read(0, Buffer.alloc(10), signal);
  await expect(read).rejects.toMatchObject({ kind: "source", code: "E_NBD_CHANGED" });
  await expect(read).rejects.toThrow(/134217728 bytes.*it was 268435456 bytes/);
});

test("writes survive a restart when the server does, and flush tells", async () => {
  const folder = await temporaryFolder();
  const args = ["file", `${folder}/disk`];
  await writeFile(`${folder}/disk`, Buffer.alloc(4 * MiB));
  const server = await nbdkit(args);
  const target = await openNbdTarget(parseNbdUri(server.uri), { retry: PATIENT }, signal);
  onTestFinished(() => target.close());
  await target.write(0, Buffer.alloc(MiB, 1), signal);
  await target.flush(signal);
  await server.kill();
  const second = nbdkit(args, { insteadOf: server });
  await target.write(MiB, Buffer.alloc(MiB, 2), signal);
  await target.flush(signal);
  await second;
  const expected = Buffer.concat([Buffer.alloc(MiB, 1), Buffer.alloc(MiB, 2), Buffer.alloc(2 * MiB)]);
  expect((await readFile(`${folder}/disk`)).equals(expected)).toBe(true);
  await target.write(0, Buffer.alloc(10), signal);
  await (await second).kill();
  await nbdkit(args, { insteadOf: server });
  await expect(target.flush(signal)).rejects.toMatchObject({ code: "E_NBD_UNFLUSHED" });
});
