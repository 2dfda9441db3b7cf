import fc from "fast-check";
import { expect, test } from "vitest";
import { Receiver } from "../../../src/nbd/receive.ts";

/** Feeds bytes as a socket with `onread` does: as much as fits where the receiver wants it. */
function feed(receiver: Receiver, bytes: Uint8Array, most: number): void {
  for (let at = 0; at < bytes.length;) {
    const buffer = receiver.buffer();
    const length = Math.min(buffer.length, most, bytes.length - at);
    buffer.set(bytes.subarray(at, at + length));
    receiver.filled(length, buffer);
    at += length;
  }
}

/** A reader of pieces of the given lengths; negative ones are skipped. */
function readPieces(receiver: Receiver, lengths: readonly number[], got: Uint8Array[]): void {
  const [length, ...rest] = lengths;
  if (length === undefined) return;
  if (length < 0) {
    receiver.skip(-length, () => readPieces(receiver, rest, got));
    return;
  }
  const into = new Uint8Array(length);
  receiver.expect(into, () => {
    got.push(into);
    readPieces(receiver, rest, got);
  });
}

function expected(bytes: Uint8Array, lengths: readonly number[]): Uint8Array[] {
  let at = 0;
  return lengths.flatMap((length) => {
    at += Math.abs(length);
    return length < 0 ? [] : [bytes.slice(at - length, at)];
  });
}

function pattern(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => (index * 31 + (index >> 8)) & 0xff);
}

const piece = fc.oneof(
  fc.integer({ min: 1, max: 40 }),
  fc.integer({ min: 16_000, max: 60_000 }),
  fc.integer({ min: -40_000, max: -1 }),
);

test("pieces arrive whole however the stream is cut", () => {
  fc.assert(
    fc.property(
      fc.array(piece, { minLength: 1, maxLength: 12 }),
      fc.integer({ min: 1, max: 70_000 }),
      fc.boolean(),
      (lengths, most, pushed) => {
        const bytes = pattern(lengths.reduce((sum, length) => sum + Math.abs(length), 0));
        const receiver = new Receiver();
        const got: Uint8Array[] = [];
        readPieces(receiver, lengths, got);
        if (pushed)
          for (let at = 0; at < bytes.length; at += most) receiver.push(bytes.subarray(at, at + most));
        else feed(receiver, bytes, most);
        expect(got.map((each) => Buffer.from(each))).toEqual(
          expected(bytes, lengths).map((each) => Buffer.from(each)),
        );
      },
    ),
    { numRuns: 200 },
  );
});

test("a stream cut in two at every place reads the same", () => {
  const lengths = [16, 4, 8, -3, 20, 1];
  const bytes = pattern(52);
  for (let cut = 0; cut <= bytes.length; cut++) {
    const receiver = new Receiver();
    const got: Uint8Array[] = [];
    readPieces(receiver, lengths, got);
    feed(receiver, bytes.subarray(0, cut), 1000);
    feed(receiver, bytes.subarray(cut), 1000);
    expect(got, `cut at ${cut}`).toEqual(expected(bytes, lengths));
  }
});

test("a long piece goes straight to where it belongs", () => {
  const receiver = new Receiver();
  const into = new Uint8Array(new SharedArrayBuffer(100_000));
  receiver.expect(into, () => undefined);
  const buffer = receiver.buffer();
  expect(buffer.buffer).toBe(into.buffer);
  expect(buffer.length).toBe(100_000);
});

test("bytes that come early wait for their reader, once", async () => {
  const receiver = new Receiver();
  receiver.push(pattern(10));
  expect(receiver.hasEarlyBytes).toBe(true);
  expect(() => receiver.push(pattern(1))).toThrow("more than it was asked for");
  await expect(receiver.read(4, 4, "x")).resolves.toEqual(Buffer.from(pattern(4)));
  await expect(receiver.read(6, 6, "x")).resolves.toEqual(Buffer.from(pattern(10).subarray(4)));
  expect(receiver.hasEarlyBytes).toBe(false);
});

test("a length past its limit is refused before memory is taken", async () => {
  await expect(new Receiver().read(2 ** 40, 100, "a greeting")).rejects.toThrow(
    "announced 1099511627776 bytes",
  );
});

test("whoever reads when it fails, or later, gets the reason", async () => {
  const receiver = new Receiver();
  const waiting = receiver.read(4, 4, "x");
  receiver.fail(new Error("first"));
  receiver.fail(new Error("second"));
  await expect(waiting).rejects.toThrow("first");
  await expect(receiver.read(4, 4, "x")).rejects.toThrow("first");
});
