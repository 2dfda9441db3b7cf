import fc from "fast-check";
import { expect, test } from "vitest";
import { ByteReader, ByteWriter } from "../../../src/bytes/cursor.ts";
import { formatSize, parseSize } from "../../../src/bytes/size.ts";

test("numbers come back as they went in", () => {
  fc.assert(
    fc.property(fc.array(fc.maxSafeNat()), fc.uint8Array(), (numbers, tail) => {
      const writer = new ByteWriter(1);
      for (const value of numbers)
        writer
          .varint(value)
          .u64(value)
          .u32(value >>> 0)
          .u16(value & 0xffff)
          .u8(value & 0xff);
      const reader = new ByteReader(writer.bytes(tail).finish(), "test");
      for (const value of numbers) {
        expect([reader.varint(), reader.u64(), reader.u32(), reader.u16(), reader.u8()]).toEqual([
          value,
          value,
          value >>> 0,
          value & 0xffff,
          value & 0xff,
        ]);
      }
      expect([...reader.bytes(tail.length)]).toEqual([...tail]);
      reader.end();
    }),
  );
});

test.each([
  ["8000", "E_VARINT", "not the shortest form"],
  ["ffffffffffffffffff01", "E_VARINT", "too long"],
  ["ffffffffffffff7f", "E_TOO_LARGE", "past 2^53"],
  ["80", "E_TRUNCATED", "cut"],
])("varint %s is refused with %s: %s", (hex, code) => {
  expect(() => new ByteReader(Buffer.from(hex, "hex"), "test").varint()).toThrow(
    expect.objectContaining({ code }),
  );
});

test("a u64 past 2^53 and bytes after the end are refused", () => {
  const large = new ByteReader(Buffer.from("ffffffffffffffff", "hex"), "test");
  expect(() => large.u64()).toThrow(expect.objectContaining({ code: "E_TOO_LARGE" }));
  expect(() => new ByteReader(Buffer.of(1), "test").end()).toThrow(
    expect.objectContaining({ code: "E_TRAILING" }),
  );
});

test.each([
  ["0", 0],
  ["512", 512],
  ["256KiB", 262144],
  ["1.5GiB", 1610612736],
  ["64 M", 67108864],
  ["2T", 2199023255552],
])("size %s is %i bytes", (text, bytes) => expect(parseSize(text)).toBe(bytes));

test.each(["", "-1", "1.0001K", "12 apples", "0x10", "1e9", "99999999999T"])("%j is no size", (text) => {
  expect(() => parseSize(text)).toThrow(expect.objectContaining({ kind: "usage", code: "E_SIZE" }));
});

test.each([
  [0, "0 B"],
  [1023, "1023 B"],
  [1536, "1.5 KiB"],
  [200 * 1024 * 1024, "200 MiB"],
  [3 * 1024 ** 4, "3.0 TiB"],
])("%i bytes read %s", (bytes, text) => expect(formatSize(bytes)).toBe(text));
