import fc from "fast-check";
import { expect, test } from "vitest";
import { InfoType, Option, OptionReplyType } from "../../../src/nbd/constants.ts";
import * as options from "../../../src/nbd/options.ts";

function hex(digits: string): Buffer {
  return Buffer.from(digits.replaceAll(" ", ""), "hex");
}

test("the greeting and options are laid out as proto.md says", () => {
  const greeting = hex("4e42444d41474943 49484156454f5054 0003");
  expect(options.encodeGreeting(3)).toEqual(greeting);
  expect(options.decodeGreeting(greeting)).toBe(3);
  expect(options.encodeClientFlags(3)).toEqual(hex("00000003"));
  const go = options.encodeInfoRequest({ exportName: "ab", infos: [InfoType.BLOCK_SIZE] });
  expect(go).toEqual(hex("00000002 6162 0001 0003"));
  const request = options.encodeOption(Option.GO, go);
  expect(request).toEqual(hex("49484156454f5054 00000007 0000000a 00000002 6162 0001 0003"));
  expect(options.decodeOptionHeader(request.subarray(0, 16))).toEqual({ option: Option.GO, length: 10 });
  const reply = options.encodeOptionReply(Option.GO, OptionReplyType.ERR_UNKNOWN, Buffer.from("no"));
  expect(reply).toEqual(hex("0003e889045565a9 00000007 80000006 00000002 6e6f"));
  expect(options.decodeOptionReplyHeader(reply.subarray(0, 20))).toEqual({
    option: Option.GO,
    type: OptionReplyType.ERR_UNKNOWN,
    length: 2,
  });
});

test("replies' data is laid out as proto.md says", () => {
  const facts = options.encodeInfo({ type: InfoType.EXPORT, size: 0x1_0000_0000, flags: 0x058f });
  expect(facts).toEqual(hex("0000 0000000100000000 058f"));
  const blockSize = { minimum: 1, preferred: 4096, maximum: 0x200_0000 };
  const blocks = options.encodeInfo({ type: InfoType.BLOCK_SIZE, blockSize });
  expect(blocks).toEqual(hex("0003 00000001 00001000 02000000"));
  expect(options.encodeExportEntry({ name: "a", description: "b" })).toEqual(hex("00000001 61 62"));
  expect(options.encodeMetaContext({ id: 9, name: "x:y" })).toEqual(hex("00000009 783a79"));
  const query = options.encodeMetaContextRequest({ exportName: "d", queries: ["x:y"] });
  expect(query).toEqual(hex("00000001 64 00000001 00000003 783a79"));
});

/** Strings a peer may send: no NUL, no lone surrogates. */
const text = fc.string({ unit: "grapheme", maxLength: 50 }).filter((value) => !value.includes("\0"));
const word = fc.stringMatching(/^[a-z]{0,20}$/);
const u16 = fc.integer({ min: 0, max: 0xffff });
const u32 = fc.integer({ min: 0, max: 0xffff_ffff });

test("what is encoded is decoded", () => {
  const check = <T>(
    values: fc.Arbitrary<T>,
    encode: (value: T) => Buffer,
    decode: (bytes: Uint8Array) => T,
  ): void => {
    fc.assert(
      fc.property(values, (value) => {
        expect(decode(encode(value))).toEqual(value);
      }),
    );
  };
  check(u16, options.encodeGreeting, options.decodeGreeting);
  check(u32, options.encodeClientFlags, options.decodeClientFlags);
  const facts = fc.record({ size: fc.maxSafeNat(), flags: u16 });
  check(facts, options.encodeExportFacts, options.decodeExportFacts);
  const infoRequest = fc.record({ exportName: text, infos: fc.array(u16) });
  check(infoRequest, options.encodeInfoRequest, options.decodeInfoRequest);
  const contextRequest = fc.record({ exportName: text, queries: fc.array(text) });
  check(contextRequest, options.encodeMetaContextRequest, options.decodeMetaContextRequest);
  check(fc.record({ id: u32, name: text }), options.encodeMetaContext, options.decodeMetaContext);
  check(fc.record({ name: text, description: word }), options.encodeExportEntry, options.decodeExportEntry);
  const info = fc.oneof(
    facts.map((value) => ({ type: InfoType.EXPORT, ...value })),
    text.map((name) => ({ type: InfoType.NAME, name })),
    word.map((description) => ({ type: InfoType.DESCRIPTION, description })),
    fc
      .record({ minimum: u32, preferred: u32, maximum: u32 })
      .map((blockSize) => ({ type: InfoType.BLOCK_SIZE, blockSize })),
    fc.record({
      type: fc.constant("unknown" as const),
      number: fc.integer({ min: 4, max: 0xffff }),
      data: fc.uint8Array().map((bytes) => Buffer.from(bytes)),
    }),
  );
  check<options.Info>(info, options.encodeInfo, options.decodeInfo);
});

test("fields that reach past the message, or stop before its end, are refused at every cut", () => {
  const whole: [Buffer, (bytes: Uint8Array) => unknown][] = [
    [options.encodeInfoRequest({ exportName: "disk", infos: [3, 1] }), options.decodeInfoRequest],
    [
      options.encodeMetaContextRequest({ exportName: "disk", queries: ["a:b", "c:d"] }),
      options.decodeMetaContextRequest,
    ],
  ];
  for (const [bytes, decode] of whole) {
    for (let cut = 0; cut < bytes.length; cut++) {
      expect(() => decode(bytes.subarray(0, cut)), `cut at ${cut}`).toThrow("ends too early");
    }
    expect(() => decode(Buffer.concat([bytes, Buffer.alloc(1)]))).toThrow("goes on after its end");
  }
});

test.each([
  ["NUL", Buffer.from("a\0b"), /NUL/],
  ["no UTF-8", Buffer.from([0xc3, 0x28]), /UTF-8/],
  ["too long", Buffer.alloc(4097, 65), /4097 bytes/],
])("a name with %s is refused", (_what, name, reason) => {
  const bytes = Buffer.concat([Buffer.alloc(4), name]);
  expect(() => options.decodeMetaContext(bytes)).toThrow(reason);
  expect(() => options.encodeMetaContext({ id: 0, name: "a\0b" })).toThrow("no NUL");
});

test("4 billion queries in a few bytes are refused before memory is taken", () => {
  expect(() => options.decodeMetaContextRequest(hex("00000000 ffffffff"))).toThrow("ends too early");
});
