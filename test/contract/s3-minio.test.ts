import { startMinio } from "../support/minio.ts";
import { describeObjectStore } from "./object-store.ts";
import { openOn } from "./s3.ts";

describeObjectStore("MinIO", async () => openOn(await startMinio()));
