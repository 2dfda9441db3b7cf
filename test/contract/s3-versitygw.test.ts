import { startVersitygw } from "../support/versitygw.ts";
import { describeObjectStore } from "./object-store.ts";
import { openOn } from "./s3.ts";

describeObjectStore("versitygw", async () => openOn(await startVersitygw()));
