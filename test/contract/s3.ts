import { buffer } from "node:stream/consumers";
import { openStore } from "../../src/store/open.ts";
import { minioClient } from "../support/minio.ts";
import type { S3Server } from "../support/s3-process.ts";
import type { OpenedStore } from "./object-store.ts";

const SHORT = { attemptsMax: 5, baseMs: 20, waitMaxMs: 200, budgetMs: 5000 };

/** A store in a new bucket of the server, with the `minio` package's client as the witness. */
export async function openOn(server: S3Server): Promise<OpenedStore> {
  const bucket = await server.createBucket("contract");
  const credentials = { accessKeyId: server.accessKey, secretAccessKey: server.secretKey };
  const client = minioClient(server);
  return {
    // RGW answers the completion of an aborted upload with an internal error, which is tried again
    store: await openStore(server.location(bucket, "some/prefix"), { credentials, retry: SHORT }),
    missing: await openStore(server.location("no-such-bucket"), { credentials }),
    witness: async (key) => buffer(await client.getObject(bucket, `some/prefix/${key}`)),
    close: () => server.stop(),
  };
}
