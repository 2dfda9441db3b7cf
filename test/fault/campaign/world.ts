import { startMinio } from "../../support/minio.ts";
import type { S3Server } from "../../support/s3-process.ts";
import { Uploads } from "./uploads.ts";

/** What all lives of a campaign share. */
export interface World {
  readonly minio: S3Server;
  readonly bucket: string;
  readonly uploads: Uploads;
}

/** Starts a real server; this process sees it by its environment, past every proxy. */
export async function openWorld(): Promise<World> {
  const minio = await startMinio();
  Object.assign(process.env, minio.env);
  const bucket = await minio.createBucket("campaign");
  return { minio, bucket, uploads: new Uploads(minio, bucket) };
}
