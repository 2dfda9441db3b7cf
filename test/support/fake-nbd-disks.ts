import { onTestFinished } from "vitest";
import { openNbdSource, type NbdSource, type NbdSourceOptions } from "../../src/nbd/source.ts";
import { openNbdTarget, type NbdTarget, type NbdTargetOptions } from "../../src/nbd/target.ts";
import { parseNbdUri } from "../../src/nbd/uri.ts";
import { startFakeNbdServer, type FakeOptions, type FakeServer } from "./fake-nbd-server.ts";

/** Gives up after three attempts without noticeable waits. */
export const QUICK = { attemptsMax: 3, baseMs: 1, waitMaxMs: 5, budgetMs: 5000 };

const { signal } = new AbortController();

/** 256 KiB in which neighbouring sectors differ. */
export function disk(): Buffer {
  return Buffer.from(Array.from({ length: 256 * 1024 }, (_, index) => (index * 7 + (index >> 9)) & 0xff));
}

/** A fake server for the test that runs. */
export async function fake(options: FakeOptions): Promise<FakeServer> {
  const server = await startFakeNbdServer(options);
  onTestFinished(() => server.stop());
  return server;
}

export async function source(server: FakeServer, options: NbdSourceOptions = {}): Promise<NbdSource> {
  const opened = await openNbdSource(parseNbdUri(server.uri), { retry: QUICK, ...options }, signal);
  onTestFinished(() => opened.close());
  return opened;
}

export async function target(server: FakeServer, options: NbdTargetOptions = {}): Promise<NbdTarget> {
  const opened = await openNbdTarget(parseNbdUri(server.uri), { retry: QUICK, ...options }, signal);
  onTestFinished(() => opened.close());
  return opened;
}

export async function readAt(from: NbdSource, offset: number, length: number): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee);
  await from.read(offset, into, signal);
  return into;
}
