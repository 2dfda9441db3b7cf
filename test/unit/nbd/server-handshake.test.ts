import { once } from "node:events";
import { describe, expect, test } from "vitest";
import {
  ClientFlag,
  Command,
  Errno,
  ExportFlag,
  InfoType,
  Option,
  OptionReplyType,
} from "../../../src/nbd/constants.ts";
import {
  decodeExportFacts,
  decodeMetaContext,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
} from "../../../src/nbd/options.ts";
import { decodeErrorChunk } from "../../../src/nbd/messages.ts";
import { MemoryDisk, patterned } from "../../support/memory-disk.ts";
import { RawNbdClient } from "../../support/raw-nbd-client.ts";
import { serve } from "../../support/serve.ts";

const DISK = new MemoryDisk(patterned(1000), { dirty: [{ offset: 0, length: 10 }], zeros: [] });
const PSK = { type: "psk", keys: new Map([["user", Buffer.alloc(32, 1)]]) } as const;

const go = (exportName: string): Buffer => encodeInfoRequest({ exportName, infos: [] });
const contexts = (exportName: string, ...queries: string[]): Buffer =>
  encodeMetaContextRequest({ exportName, queries });

async function greeted(path: string, flags?: number): Promise<RawNbdClient> {
  const client = await RawNbdClient.connect(path);
  await client.greet(flags);
  return client;
}

/** Name of the final reply's type; of a list of several, the others come before. */
async function answerTo(client: RawNbdClient, option: number, data?: Uint8Array): Promise<string> {
  const { type } = (await client.option(option, data)).at(-1)!;
  return Object.entries(OptionReplyType).find(([, value]) => value === type)![0];
}

describe("EXPORT_NAME", () => {
  test.each([
    { flags: ClientFlag.FIXED_NEWSTYLE, padding: 124 },
    { flags: ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES, padding: 0 },
    { flags: 0, padding: 124 },
  ])("is answered with $padding zeros to flags $flags, and reads work", async ({ flags, padding }) => {
    const { path } = await serve({ disk: DISK });
    const client = await greeted(path, flags);
    client.send(encodeOption(Option.EXPORT_NAME, Buffer.from("disk")));
    const facts = decodeExportFacts(await client.read(10));
    expect(facts).toMatchObject({ size: 1000 });
    expect(facts.flags & ExportFlag.SEND_DF).toBe(0);
    expect((await client.read(padding)).every((byte) => byte === 0)).toBe(true);
    client.request(Command.READ, { offset: 10, length: 20 });
    expect(await client.simpleReply()).toEqual({ error: 0, cookie: 1n });
    expect(await client.read(20)).toEqual(patterned(1000).subarray(10, 30));
  });

  test("of no export ends the session", async () => {
    const { path } = await serve({ disk: DISK });
    const client = await greeted(path);
    client.send(encodeOption(Option.EXPORT_NAME, Buffer.from("none")));
    expect(await client.closed()).toHaveLength(0);
  });

  test("after extended headers ends the session", async () => {
    const { path, errors } = await serve({ disk: DISK });
    const client = await greeted(path);
    expect(await answerTo(client, Option.EXTENDED_HEADERS)).toBe("ACK");
    client.send(encodeOption(Option.EXPORT_NAME, Buffer.from("disk")));
    expect(await client.closed()).toHaveLength(0);
    expect(errors).toMatchObject([{ code: "E_NBD_PROTOCOL" }]);
  });
});

test("each wrong option gets its error, and the haggling goes on", async () => {
  const { path } = await serve({ disk: DISK, other: DISK });
  const client = await greeted(path);
  const one = Buffer.from("x");
  expect(await answerTo(client, 99, Buffer.alloc(1000))).toBe("ERR_UNSUP");
  expect(await answerTo(client, Option.PEEK_EXPORT)).toBe("ERR_UNSUP");
  expect(await answerTo(client, Option.LIST, one)).toBe("ERR_INVALID");
  expect(await answerTo(client, Option.STRUCTURED_REPLY, one)).toBe("ERR_INVALID");
  expect(await answerTo(client, Option.EXTENDED_HEADERS, one)).toBe("ERR_INVALID");
  expect(await answerTo(client, Option.STARTTLS)).toBe("ERR_POLICY");
  expect(await answerTo(client, Option.GO, go("none"))).toBe("ERR_UNKNOWN");
  expect(await answerTo(client, Option.GO, go(""))).toBe("ERR_UNKNOWN");
  expect(await answerTo(client, Option.INFO, go("none"))).toBe("ERR_UNKNOWN");
  expect(await answerTo(client, Option.GO, go("disk").subarray(1))).toBe("ERR_INVALID");
  expect(await answerTo(client, Option.GO, Buffer.concat([go("disk"), one]))).toBe("ERR_INVALID");
  expect(await answerTo(client, Option.GO, Buffer.alloc(0))).toBe("ERR_INVALID");
  expect(await answerTo(client, Option.GO, Buffer.alloc(65_537))).toBe("ERR_TOO_BIG");
  expect(await answerTo(client, Option.SET_META_CONTEXT, contexts("disk", "base:allocation"))).toBe(
    "ERR_INVALID",
  );
  expect(await answerTo(client, Option.STRUCTURED_REPLY)).toBe("ACK");
  expect(await answerTo(client, Option.LIST_META_CONTEXT, contexts("none"))).toBe("ERR_UNKNOWN");
  expect(await answerTo(client, Option.LIST_META_CONTEXT, contexts("disk").subarray(0, 9))).toBe(
    "ERR_INVALID",
  );
  expect(await answerTo(client, Option.EXTENDED_HEADERS)).toBe("ACK");
  expect(await answerTo(client, Option.STRUCTURED_REPLY)).toBe("ERR_EXT_HEADER_REQD");
  expect(await answerTo(client, Option.LIST)).toBe("ACK");
  expect(await answerTo(client, Option.GO, go("disk"))).toBe("ACK");
});

test("INFO tells what GO tells and does not start transmission", async () => {
  const { path } = await serve({ disk: DISK });
  const client = await greeted(path);
  const data = encodeInfoRequest({ exportName: "", infos: [InfoType.NAME, InfoType.BLOCK_SIZE, 77] });
  const info = await client.option(Option.INFO, data);
  expect(info.map(({ type }) => type)).toEqual([3, 3, 3, 1]);
  expect(await client.option(Option.GO, data)).toEqual(info);
});

test("ABORT is acknowledged, then the server hangs up", async () => {
  const { path, errors } = await serve({ disk: DISK });
  const client = await greeted(path);
  expect(await answerTo(client, Option.ABORT, Buffer.from("why not"))).toBe("ACK");
  expect(await client.closed()).toHaveLength(0);
  expect(errors).toEqual([]);
});

describe("metadata contexts", () => {
  const listed = async (client: RawNbdClient, option: number, ...queries: string[]): Promise<string[]> => {
    const replies = await client.option(option, contexts("disk", ...queries));
    return replies.slice(0, -1).map(({ data }) => decodeMetaContext(data).name);
  };

  test("LIST knows wildcards, SET does not", async () => {
    const { path } = await serve({ disk: DISK });
    const client = await greeted(path);
    await client.option(Option.STRUCTURED_REPLY);
    const [allocation, bitmap] = ["base:allocation", "qemu:dirty-bitmap:bitmap0"];
    const list = async (...queries: string[]): Promise<string[]> =>
      await listed(client, Option.LIST_META_CONTEXT, ...queries);
    const set = async (...queries: string[]): Promise<string[]> =>
      await listed(client, Option.SET_META_CONTEXT, ...queries);
    expect(await list()).toEqual([allocation, bitmap]);
    expect(await list("base:")).toEqual([allocation]);
    expect(await list("qemu:", "base:")).toEqual([allocation, bitmap]);
    expect(await list("qemu:dirty-bitmap:")).toEqual([bitmap]);
    expect(await list("qemu:dirty-bitmap:bit", "x-unknown:y", "senseless")).toEqual([]);
    expect(await set()).toEqual([]);
    expect(await set("base:", "qemu:", "qemu:dirty-bitmap:")).toEqual([]);
    expect(await set(bitmap, allocation, bitmap, "base:unknown")).toEqual([allocation, bitmap]);
  });

  test.each([
    {
      title: "count for the export they were selected for",
      last: contexts("disk", "base:allocation"),
      error: 0,
    },
    {
      title: "do not count for another one",
      last: contexts("other", "base:allocation"),
      error: Errno.EINVAL,
    },
    {
      title: "are gone after a later SET that fails",
      last: contexts("none", "base:allocation"),
      error: Errno.EINVAL,
    },
    { title: "are gone after a later SET of none", last: contexts("disk"), error: Errno.EINVAL },
  ])("$title", async ({ last, error }) => {
    const { path } = await serve({ disk: DISK, other: DISK });
    const client = await greeted(path);
    await client.option(Option.STRUCTURED_REPLY);
    await client.option(Option.SET_META_CONTEXT, contexts("disk", "base:allocation"));
    await client.option(Option.SET_META_CONTEXT, last);
    await client.option(Option.GO, go("disk"));
    client.request(Command.BLOCK_STATUS, { length: 1000 });
    const [chunk] = await client.chunks();
    if (error === 0) expect(chunk).toMatchObject({ type: 5, length: 12 });
    else expect(decodeErrorChunk(chunk!.type, chunk!.payload).error).toBe(error);
  });
});

describe("a server with TLS", () => {
  test("gives nothing away without it", async () => {
    const { path } = await serve({ disk: DISK }, { tls: PSK });
    const client = await greeted(path);
    for (const option of [Option.LIST, Option.GO, Option.INFO, Option.STRUCTURED_REPLY, 99]) {
      expect(await answerTo(client, option, go("disk"))).toBe("ERR_TLS_REQD");
    }
    expect(await answerTo(client, Option.STARTTLS, Buffer.from("x"))).toBe("ERR_INVALID");
    client.send(encodeOption(Option.EXPORT_NAME, Buffer.from("disk")));
    expect(await client.closed()).toHaveLength(0);
  });

  test("takes nothing that came in clear text behind STARTTLS", async () => {
    const { path, errors } = await serve({ disk: DISK }, { tls: PSK });
    const client = await greeted(path);
    client.send(
      Buffer.concat([
        encodeOption(Option.STARTTLS, Buffer.alloc(0)),
        encodeOption(Option.LIST, Buffer.alloc(0)),
      ]),
    );
    expect(await client.closed()).toHaveLength(0);
    expect(errors).toMatchObject([{ code: "E_NBD_PROTOCOL" }]);
  });

  test("hangs up on what is no TLS handshake", async () => {
    const { path } = await serve({ disk: DISK }, { tls: PSK });
    const client = await greeted(path);
    expect(await answerTo(client, Option.STARTTLS)).toBe("ACK");
    client.send(Buffer.from("this is not TLS, not even close to it"));
    await client.closed();
  });

  test("does not wait for ever for a TLS handshake", async () => {
    const { path } = await serve({ disk: DISK }, { tls: PSK, handshakeMs: 100 });
    const client = await greeted(path);
    expect(await answerTo(client, Option.STARTTLS)).toBe("ACK");
    await client.closed();
  });
});

describe("a client that breaks the protocol is cut off", () => {
  test.each([
    { title: "unknown flags", greet: 4, bytes: Buffer.alloc(0) },
    { title: "an option without its magic number", greet: 3, bytes: Buffer.alloc(16, 0x55) },
    { title: "garbage", greet: 0x55555555, bytes: Buffer.alloc(100_000, 0x55) },
  ])("$title", async ({ greet, bytes }) => {
    const { path, errors } = await serve({ disk: DISK });
    const client = await greeted(path, greet);
    client.send(bytes);
    await client.closed();
    expect(errors).toMatchObject([{ code: "E_NBD_PROTOCOL", kind: "source" }]);
  });

  test.each(["says nothing", "stops in an option", "promises 4 GiB of option data"])(
    "who %s",
    async (title) => {
      const { path } = await serve({ disk: DISK }, { handshakeMs: 150 });
      const client = await greeted(path);
      const option = encodeOption(Option.GO, Buffer.alloc(100));
      if (title.includes("4 GiB")) option.writeUInt32BE(0xffff_ffff, 12);
      if (!title.includes("nothing")) client.send(option.subarray(0, 50));
      expect(await client.closed()).toHaveLength(0);
    },
  );
});

test("clients beyond the limit are turned away, and let in again when others leave", async () => {
  const { path } = await serve({ disk: DISK }, { connectionsMax: 2 });
  const [one] = [await greeted(path), await greeted(path)];
  const third = await RawNbdClient.connect(path);
  expect(await third.closed()).toHaveLength(0);
  one.socket.destroy();
  await once(one.socket, "close");
  for (let welcome = false; !welcome;) {
    const client = await RawNbdClient.connect(path);
    welcome = await client.greet().then(
      () => true,
      () => false,
    );
  }
});
