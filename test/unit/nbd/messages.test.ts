import fc from "fast-check";
import { expect, test } from "vitest";
import { ChunkType, Command, CommandFlag, Errno, nameOf } from "../../../src/nbd/constants.ts";
import * as messages from "../../../src/nbd/messages.ts";
import { statusOf } from "../../support/fake-nbd-server.ts";

/** Bytes from hexadecimal digits with spaces, as the tables of proto.md read from left to right. */
function hex(digits: string): Buffer {
  return Buffer.from(digits.replaceAll(" ", ""), "hex");
}

const COOKIE = 0x0102030405060708n;

test("requests are laid out as proto.md says", () => {
  const request = {
    flags: CommandFlag.FUA,
    type: Command.WRITE_ZEROES,
    cookie: COOKIE,
    offset: 0x1_0000_0002,
    length: 0x3000,
  };
  const compact = hex("25609513 0001 0006 0102030405060708 0000000100000002 00003000");
  const extended = hex("21e41c71 0001 0006 0102030405060708 0000000100000002 0000000000003000");
  expect(messages.encodeRequest(request)).toEqual(compact);
  expect(messages.encodeExtendedRequest(request)).toEqual(extended);
  expect(messages.decodeRequest(compact)).toEqual(request);
  expect(messages.decodeExtendedRequest(extended)).toEqual(request);
});

test("reply headers are laid out as proto.md says", () => {
  const simple = hex("67446698 00000005 0102030405060708");
  expect(messages.encodeSimpleReply({ error: Errno.EIO, cookie: COOKIE })).toEqual(simple);
  expect(messages.decodeSimpleReply(simple)).toEqual({ error: Errno.EIO, cookie: COOKIE });
  const chunk = { flags: 1, type: ChunkType.ERROR_OFFSET, cookie: COOKIE, length: 0xffff_ffff };
  const structured = hex("668e33ef 0001 8002 0102030405060708 ffffffff");
  expect(messages.encodeChunkHeader(chunk)).toEqual(structured);
  expect(messages.decodeChunkHeader(structured)).toEqual(chunk);
  const wide = { ...chunk, offset: 0x1_0000_0000, length: 0x2_0000_0000 };
  const extended = hex("6e8a278c 0001 8002 0102030405060708 0000000100000000 0000000200000000");
  expect(messages.encodeExtendedChunkHeader(wide)).toEqual(extended);
  expect(messages.decodeExtendedChunkHeader(extended)).toEqual(wide);
});

test("chunk payloads are laid out as proto.md says", () => {
  expect(messages.encodeDataPrefix(0x1_0000_0000)).toEqual(hex("0000000100000000"));
  expect(messages.encodeHole({ offset: 512, length: 1024 })).toEqual(hex("0000000000000200 00000400"));
  expect(messages.encodeErrorChunk({ error: 5, message: "no" })).toEqual(hex("00000005 0002 6e6f"));
  const atOffset = hex("00000005 0002 6e6f 0000000000001000");
  expect(messages.encodeErrorChunk({ error: 5, message: "no", offset: 4096 })).toEqual(atOffset);
  expect(messages.decodeErrorChunk(ChunkType.ERROR_OFFSET, atOffset)).toEqual({
    error: 5,
    message: "no",
    offset: 4096,
  });
  const two = statusOf(7, [
    [4096, 3],
    [512, 0],
  ]);
  const status = hex("00000007 00001000 00000003 00000200 00000000");
  const wide = hex("00000007 00000002 0000000000001000 0000000000000003 0000000000000200 0000000000000000");
  expect(messages.encodeBlockStatus(two)).toEqual(status);
  expect(messages.decodeBlockStatus(status)).toEqual(two);
  expect(messages.encodeExtendedBlockStatus(two)).toEqual(wide);
  expect(messages.decodeExtendedBlockStatus(wide)).toEqual(two);
});

test("an error type nobody knows yet keeps its error and text", () => {
  const payload = hex("00000005 0002 6e6f ffff");
  expect(messages.decodeErrorChunk(0x8009, payload)).toEqual({ error: 5, message: "no" });
  expect(() => messages.decodeErrorChunk(ChunkType.ERROR, payload)).toThrow("contradict");
});

test("a server's text cannot move a terminal's cursor or fill the screen", () => {
  const message = `\u001b[2Jfire\n\n\u202eeveryone ${"x".repeat(5000)}`;
  const shown = messages.decodeErrorChunk(ChunkType.ERROR, messages.encodeErrorChunk({ error: 5, message }));
  expect(shown.message).toMatch(/^\[2Jfire everyone x+$/);
  expect(shown.message.length).toBeLessThanOrEqual(4096);
});

const u16 = fc.integer({ min: 0, max: 0xffff });
const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const u53 = fc.maxSafeNat();
const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const request = fc.record({ flags: u16, type: u16, cookie: u64, offset: u53, length: u32 });
const chunk = fc.record({ flags: u16, type: u16, cookie: u64, length: u32 });
const extents = fc.array(fc.tuple(fc.integer({ min: 1, max: 0xffff_ffff }), u32), { minLength: 1 });
const wideExtents = fc.array(fc.tuple(fc.integer({ min: 1, max: 2 ** 53 - 1 }), u53), { minLength: 1 });

test("what is encoded is decoded, and nothing shorter or longer is", () => {
  const check = <T>(
    values: fc.Arbitrary<T>,
    encode: (value: T) => Buffer,
    decode: (bytes: Uint8Array) => T,
  ): void => {
    fc.assert(
      fc.property(values, (value) => {
        const bytes = encode(value);
        expect(decode(bytes)).toEqual(value);
        expect(decode(Uint8Array.from(bytes))).toEqual(value); // not every caller has a Buffer
        expect(() => decode(bytes.subarray(0, -1))).toThrow(/NBD peer/);
        expect(() => decode(Buffer.concat([bytes, Buffer.alloc(1)]))).toThrow(/NBD peer/);
      }),
    );
  };
  const wide = fc.record({ flags: u16, type: u16, cookie: u64, length: u53, offset: u53 });
  check(request, messages.encodeRequest, messages.decodeRequest);
  check(request, messages.encodeExtendedRequest, messages.decodeExtendedRequest);
  check(fc.record({ error: u32, cookie: u64 }), messages.encodeSimpleReply, messages.decodeSimpleReply);
  check(chunk, messages.encodeChunkHeader, messages.decodeChunkHeader);
  check(wide, messages.encodeExtendedChunkHeader, messages.decodeExtendedChunkHeader);
  check(u53, messages.encodeDataPrefix, messages.decodeDataPrefix);
  const hole = fc.record({ offset: u53, length: fc.integer({ min: 1, max: 0xffff_ffff }) });
  check(hole, messages.encodeHole, messages.decodeHole);
  const status = fc.tuple(u32, extents).map(([id, list]) => statusOf(id, list));
  check(status, messages.encodeBlockStatus, messages.decodeBlockStatus);
  const extended = fc.tuple(u32, wideExtents).map(([id, list]) => statusOf(id, list));
  check(extended, messages.encodeExtendedBlockStatus, messages.decodeExtendedBlockStatus);
});

test("an offset past 2^53 is past every bound", () => {
  const bytes = messages.encodeRequest({ flags: 0, type: 0, cookie: 0n, offset: 0, length: 1 });
  bytes.fill(0xff, 16, 24);
  expect(messages.decodeRequest(bytes).offset).toBeGreaterThan(Number.MAX_SAFE_INTEGER);
});

test("errors are named as proto.md names them, made-up ones keep their number", () => {
  expect(Object.entries(Errno).map(([name, value]) => nameOf(Errno, value) === name)).not.toContain(false);
  expect(nameOf(Errno, 99)).toBe("unknown (0x63)");
});
