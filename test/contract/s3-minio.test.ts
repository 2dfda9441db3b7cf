import { startMinio } from "../support/minio.ts";
import { describeObjectStore } from "./object-store.ts";
import { openOn } from "./s3.ts";

describeObjectStore("MinIO", async () => ({
  ...(await openOn(await startMinio())),
  uploadsByWholeKey: true,
}));
