import { startRgw } from "../support/rgw.ts";
import { describeObjectStore } from "./object-store.ts";
import { openOn } from "./s3.ts";

describeObjectStore("Ceph RADOS gateway", async () => openOn(await startRgw()));
