import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { CreateBucketCommand, S3Client } from "@aws-sdk/client-s3";
import { MiB } from "../../src/bytes/size.ts";
import { openStore } from "../../src/store/open.ts";

/**
 * s3-round-trip.ts LOCATION: writes to a new bucket and reads back. A program of its own because the authorities Node
 * trusts are read once, when it starts.
 */
const signal = new AbortController().signal;
const location = process.argv[2]!;
const client = new S3Client({ forcePathStyle: true });
await client.send(new CreateBucketCommand({ Bucket: new URL(location).hostname }));
for (const checksums of [false, true]) {
  const store = await openStore(location, { checksums });
  const body = randomBytes(11 * MiB);
  const key = `pack-${checksums}`;
  const upload = await store.beginUpload(key, signal);
  await Promise.all(
    [0, 1, 2].map((number) =>
      upload.part(number, body.subarray(number * 5 * MiB, (number + 1) * 5 * MiB), signal),
    ),
  );
  await upload.complete(signal);
  assert((await store.get(key, 20 * MiB, signal)).equals(body));
  await store.putStream(`stream-${checksums}`, chunks(body), signal);
  assert((await store.get(`stream-${checksums}`, 20 * MiB, signal)).equals(body));
  await store.put(`small-${checksums}`, body.subarray(0, 300_000), signal);
  const tail = await store.getTail(`small-${checksums}`, 1000, signal);
  assert(tail.bytes.equals(body.subarray(299_000, 300_000)));
  store.close();
}
client.destroy();
console.log("ok");

async function* chunks(body: Buffer): AsyncGenerator<Buffer> {
  for (let start = 0; start < body.length; start += MiB) {
    await Promise.resolve();
    yield body.subarray(start, start + MiB);
  }
}
