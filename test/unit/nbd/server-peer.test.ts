import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { Peer } from "../../../src/nbd/server/peer.ts";
import { patterned } from "../../support/memory-disk.ts";
import { testFolder } from "../../support/serve.ts";

/** Our end of a connection and the client's socket. */
async function pair(): Promise<{ peer: Peer; client: Socket }> {
  const path = join(await testFolder(), "s");
  const server = createServer({ allowHalfOpen: true }).listen(path);
  await once(server, "listening");
  const client = connect(path);
  const [socket] = (await once(server, "connection")) as [Socket];
  onTestFinished(() => {
    for (const end of [client, socket]) end.destroy();
    server.close();
  });
  return { peer: new Peer(socket), client };
}

test("exact reads, whatever the pieces", async () => {
  const { peer, client } = await pair();
  const bytes = patterned(500_000);
  client.write(bytes.subarray(0, 3));
  const first = peer.read(10);
  client.write(bytes.subarray(3));
  expect(await first).toEqual(bytes.subarray(0, 10));
  await peer.skip(100_000);
  const into = Buffer.alloc(300_000);
  await peer.readInto(into);
  expect(into.equals(bytes.subarray(100_010, 400_010))).toBe(true);
  expect(await peer.read(1)).toEqual(bytes.subarray(400_010, 400_011));
});

test("who sends without end waits: only so much is kept unread", async () => {
  const { peer, client } = await pair();
  const bytes = patterned(8 * 1024 * 1024);
  let sent = false;
  client.write(bytes, () => (sent = true));
  while (peer.buffered < 256 * 1024) await new Promise(setImmediate);
  for (let turn = 0; turn < 100; turn++) await new Promise(setImmediate);
  expect(peer.buffered).toBeLessThan(512 * 1024);
  expect(sent).toBe(false);
  const into = Buffer.alloc(bytes.length);
  await peer.readInto(into);
  expect(into.equals(bytes)).toBe(true);
});

test("what came before the end is read before the end is told", async () => {
  const { peer, client } = await pair();
  client.end("0123456789");
  await once(peer.socket, "end");
  expect((await peer.read(6)).toString()).toBe("012345");
  await expect(peer.read(6)).rejects.toMatchObject({ code: "E_NBD_CLIENT_LEFT" });
});

test("once failed it stays failed, for the first reason", async () => {
  const { peer, client } = await pair();
  client.write("0123456789");
  await once(peer.socket, "data");
  const waiting = peer.read(100);
  const first = new Error("first");
  peer.fail(first);
  peer.fail(new Error("second"));
  await expect(waiting).rejects.toBe(first);
  await expect(peer.read(1)).rejects.toBe(first);
  await expect(peer.skip(1)).rejects.toBe(first);
});

test("sending to a client that is gone fails", async () => {
  const { peer, client } = await pair();
  client.destroy();
  await once(peer.socket, "end");
  const send = async (): Promise<void> => {
    for (let count = 0; count < 100; count++) await peer.send(Buffer.alloc(100), Buffer.alloc(100_000));
  };
  await expect(send()).rejects.toThrow();
});
