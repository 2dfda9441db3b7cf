/**
 * Memory that begins on a page, so that the kernel can move it to and from a disk without a copy (open(2),
 * O_DIRECT). Of all memory in JavaScript only that which may be resized begins on one: V8 reserves it by the page,
 * although the language does not promise it. Where it were otherwise, whoever needs a page would notice by the
 * kernel's refusal (`DirectWriter`).
 *
 * @param size bytes, > 0. Zeros at first; takes memory only as it is touched.
 */
export function pageAligned(size: number): Buffer<ArrayBuffer> {
  return Buffer.from(new ArrayBuffer(size, { maxByteLength: size }), 0, size);
}

/** As `pageAligned`, memory that threads can share. */
export function pageAlignedShared(size: number): Buffer<SharedArrayBuffer> {
  return Buffer.from(new SharedArrayBuffer(size, { maxByteLength: size }), 0, size);
}
