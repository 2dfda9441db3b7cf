import { crc32 } from "node:zlib";
import fc from "fast-check";
import { expect, test } from "vitest";
import { crc32Combine } from "../../../src/repository/crc32-combine.ts";

test("the CRC-32 of two strings follows from theirs", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 5000 }), fc.uint8Array({ maxLength: 5000 }), (first, second) => {
      const whole = crc32(Buffer.concat([first, second]));
      expect(crc32Combine(crc32(first), crc32(second), second.length)).toBe(whole);
    }),
  );
});

test.each([0, 1, 65_535, 65_536, 1 << 20, (1 << 24) + 3])("with %i bytes behind", (length) => {
  const [first, second] = [Buffer.from("first"), Buffer.alloc(length, 0xa5)];
  expect(crc32Combine(crc32(first), crc32(second), length)).toBe(crc32(Buffer.concat([first, second])));
});

test("lengths past 32 bits", () => {
  // x has the order 2^32-1 modulo the polynomial: 2^32 bytes more shift as one byte
  const twice = crc32Combine(crc32Combine(7, 9, 2 ** 32), 11, 2 ** 33 + 5);
  const bytes = crc32Combine(crc32Combine(7, 9, 1), 11, 2 + 5);
  expect(twice).toBe(bytes);
});
