/** The error of a call that must fail. */
export async function failure(work: Promise<unknown>): Promise<unknown> {
  try {
    await work;
  } catch (error) {
    return error;
  }
  throw new Error("it should have failed");
}

export async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const collected: T[] = [];
  for await (const item of items) collected.push(item);
  return collected;
}

export function parts(body: Buffer, size: number): Buffer[] {
  return Array.from({ length: Math.ceil(body.length / size) }, (_, index) =>
    body.subarray(index * size, (index + 1) * size),
  );
}

/** A body that arrives over time. */
export async function* pieces(body: Buffer, size = 1000): AsyncGenerator<Buffer> {
  for (const piece of parts(body, size)) {
    await Promise.resolve();
    yield piece;
  }
}
