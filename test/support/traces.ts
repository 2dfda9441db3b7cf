import { readdir } from "node:fs/promises";
import { surveyVm } from "../../src/qemu/inventory.ts";
import { parseGenerationBitmap } from "../../src/qemu/names.ts";
import type { QmpClient } from "../../src/qemu/qmp/client.ts";

const never = new AbortController().signal;

/**
 * What runs could leave behind in a VM and in their scratch folder, and have; generations' bitmaps left out. An NBD
 * server is stopped by asking for it. No run may be under way.
 */
export async function tracesIn(client: QmpClient, scratch: string): Promise<string[]> {
  const { status, disks, jobs, exports, nodes } = await surveyVm(client, never);
  const server = await client.execute("nbd-server-stop", undefined, never).then(
    () => ["an NBD server"],
    () => [],
  );
  return [
    ...(status === "running" || status === "prelaunch" ? [] : [`the VM is ${status}`]),
    ...jobs.map(({ id }) => `job ${id}`),
    ...exports.map(({ id }) => `export ${id}`),
    ...disks.filter(({ node }) => node.startsWith("bk-")).map(({ node }) => `filter ${node}`),
    ...nodes.filter(({ name }) => name.startsWith("bk-")).map(({ name }) => `node ${name}`),
    ...nodes
      .flatMap(({ bitmaps }) => bitmaps)
      .filter(({ name }) => name.startsWith("bk-") && parseGenerationBitmap(name) === undefined)
      .map(({ name }) => `bitmap ${name}`),
    ...server,
    ...(await readdir(scratch)).map((name) => `file ${name}`),
  ];
}
