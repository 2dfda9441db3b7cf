import { expect, onTestFinished, test } from "vitest";
import { hasCode } from "../../../src/errors.ts";
import { Option, OptionReplyType } from "../../../src/nbd/constants.ts";
import { listExports } from "../../../src/nbd/exports.ts";
import { encodeInfo, encodeMetaContext, encodeOptionReply } from "../../../src/nbd/options.ts";
import { openNbdSource, type NbdSource } from "../../../src/nbd/source.ts";
import { parseNbdUri } from "../../../src/nbd/uri.ts";
import {
  startFakeNbdServer,
  type FakeOptions,
  type FakeServer,
  type Lie,
} from "../../support/fake-nbd-server.ts";

const { signal } = new AbortController();
const QUICK = { attemptsMax: 3, baseMs: 1, waitMaxMs: 5, budgetMs: 5000 };
const DISK = Buffer.from(Array.from({ length: 64 * 1024 }, (_, index) => (index * 7) % 251));
const NOTHING = Buffer.alloc(0);

async function fake(options: FakeOptions): Promise<FakeServer> {
  const server = await startFakeNbdServer({ disk: Buffer.from(DISK), ...options });
  onTestFinished(() => server.stop());
  return server;
}

async function open(server: FakeServer, bitmap?: string): Promise<NbdSource> {
  const options = { retry: QUICK, timing: { handshakeMs: 5000, stallMs: 5000 } };
  const address = parseNbdUri(server.uri);
  const source = await openNbdSource(
    address,
    bitmap === undefined ? options : { ...options, bitmap },
    signal,
  );
  onTestFinished(() => source.close());
  return source;
}

/** The protocol error of an attempt; fails the test for anything else. */
async function protocolErrorOf(attempt: Promise<unknown>): Promise<string> {
  const error = await attempt.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!hasCode(error, "E_NBD_PROTOCOL")) throw new Error("not refused", { cause: error });
  expect(error.kind).toBe("source");
  return error.message;
}

const bytes = (length: number): Buffer => Buffer.alloc(length);

const ack = (option: number): Buffer => encodeOptionReply(option, OptionReplyType.ACK, NOTHING);
const info = (payload: Buffer): Buffer => encodeOptionReply(Option.GO, OptionReplyType.INFO, payload);
const blocks = (minimum: number, preferred: number, maximum: number): Buffer =>
  Buffer.concat([
    info(encodeInfo({ type: 0, size: 1, flags: 1 })),
    info(encodeInfo({ type: 3, blockSize: { minimum, preferred, maximum } })),
    ack(Option.GO),
  ]);
const contextReply = (id: number, name: string): Buffer =>
  encodeOptionReply(Option.SET_META_CONTEXT, OptionReplyType.META_CONTEXT, encodeMetaContext({ id, name }));

function to(wanted: number, lie: Lie): NonNullable<FakeOptions["onOption"]> {
  return (option) => (option === wanted ? lie : undefined);
}

const HANDSHAKE_LIES: [string, FakeOptions, RegExp][] = [
  ["a web page", { greeting: Buffer.from("HTTP/1.1 400 Bad Request") }, /not an NBD server/],
  [
    "oldstyle",
    { greeting: Buffer.from("4e42444d414749430000420281861253".padEnd(304, "0"), "hex") },
    /oldstyle/,
  ],
  [
    "an unknown style",
    { greeting: Buffer.from("4e42444d41474943".padEnd(36, "7"), "hex") },
    /no known style/,
  ],
  ["no magic in a reply", { onOption: to(Option.STRUCTURED_REPLY, bytes(20)) }, /magic/],
  ["the answer to another option", { onOption: to(Option.STRUCTURED_REPLY, ack(Option.GO)) }, /answered GO/],
  [
    "4 GiB announced",
    {
      onOption: () => {
        const reply = encodeOptionReply(Option.EXTENDED_HEADERS, OptionReplyType.SERVER, NOTHING);
        reply.writeUInt32BE(0xffff_ffff, 16);
        return reply;
      },
    },
    /announced 4294967295 bytes/,
  ],
  ["GO without the size", { onOption: to(Option.GO, ack(Option.GO)) }, /size/],
  ["minimum 0", { onOption: to(Option.GO, blocks(0, 4096, 65_536)) }, /impossible block sizes/],
  ["minimum 3", { onOption: to(Option.GO, blocks(3, 4096, 65_536)) }, /impossible block sizes/],
  [
    "minimum 128 KiB",
    { onOption: to(Option.GO, blocks(131_072, 131_072, 2 ** 25)) },
    /impossible block sizes/,
  ],
  [
    "preferred below minimum",
    { onOption: to(Option.GO, blocks(4096, 512, 2 ** 25)) },
    /impossible block sizes/,
  ],
  ["maximum below minimum", { onOption: to(Option.GO, blocks(4096, 4096, 512)) }, /impossible block sizes/],
  [
    "a size past 8 PiB",
    {
      onOption: to(
        Option.GO,
        Buffer.concat([info(Buffer.from("0000ffffffffffffffff0001", "hex")), ack(Option.GO)]),
      ),
    },
    /8 PiB/,
  ],
  [
    "a size cut short",
    { onOption: to(Option.GO, Buffer.concat([info(bytes(11)), ack(Option.GO)])) },
    /9 bytes instead of 10/,
  ],
  [
    "a context nobody asked for",
    { onOption: to(Option.SET_META_CONTEXT, Buffer.concat([contextReply(1, "x:y"), ack(10)])) },
    /nobody asked for/,
  ],
  [
    "one context twice",
    {
      onOption: to(
        Option.SET_META_CONTEXT,
        Buffer.concat([contextReply(1, "base:allocation"), contextReply(2, "base:allocation"), ack(10)]),
      ),
    },
    /nobody asked for/,
  ],
  [
    "two contexts of one id",
    {
      onOption: to(
        Option.SET_META_CONTEXT,
        Buffer.concat([contextReply(1, "base:allocation"), contextReply(1, "x:y"), ack(10)]),
      ),
    },
    /one id/,
  ],
  ["an answer that goes on", { onOption: (option) => Buffer.concat([ack(option), bytes(40)]) }, /magic/],
];

test.each(HANDSHAKE_LIES)(
  "a handshake with %s is refused with the reason",
  async (_what, options, reason) => {
    const server = await fake(options);
    expect(await protocolErrorOf(open(server))).toMatch(reason);
  },
);

test("an endless list of exports is refused", async () => {
  const entry = encodeOptionReply(
    Option.LIST,
    OptionReplyType.SERVER,
    Buffer.concat([bytes(4), bytes(4000)]),
  );
  const server = await fake({
    onOption: to(Option.LIST, Buffer.concat(Array.from({ length: 3000 }, () => entry))),
  });
  expect(await protocolErrorOf(listExports(parseNbdUri(server.uri), signal))).toMatch(/endless/);
});

test.each([
  ["connecting", { greeting: "silence" } as const],
  ["an option", { onOption: (): Lie => "silence" }],
])("a server that says nothing in the handshake at %s is given up", async (_what, options) => {
  const server = await fake(options);
  const timing = { handshakeMs: 50, stallMs: 1000 };
  const attempt = openNbdSource(parseNbdUri(server.uri), { timing }, signal);
  await expect(attempt).rejects.toMatchObject({ code: "E_NBD_CONNECT", kind: "source" });
  await expect(attempt).rejects.toThrow("did not finish the handshake in 50 ms");
});
