import { describe, expect, onTestFinished, test } from "vitest";
import type { RunDisk } from "../../../src/qemu/fleecing.ts";
import { RunNames } from "../../../src/qemu/names.ts";
import { QmpClient } from "../../../src/qemu/qmp/client.ts";
import { Watch } from "../../../src/qemu/watch.ts";
import { startFakeMonitor, type FakeMonitor } from "../../support/fake-monitor.ts";
import { failure } from "../../support/outcomes.ts";

const never = new AbortController().signal;
const names = new RunNames("0123456789ab");
const disks = [
  { index: 0, disk: { name: "vda", node: "drive0" } },
  { index: 1, disk: { name: "vdb", node: "#block123" } },
] as unknown as readonly RunDisk[];

async function watched(): Promise<{ monitor: FakeMonitor; client: QmpClient; watch: Watch }> {
  const monitor = await startFakeMonitor({ command: () => ({ return: {} }) });
  const client = await QmpClient.connect(monitor.path, never);
  onTestFinished(() => client.close());
  return { monitor, client, watch: new Watch(client, names, disks) };
}

const ioError = { operation: "write", action: "report", device: "", reason: "Input/output error" };

describe("what QEMU tells", () => {
  test.each([
    [
      "a job that failed",
      "BLOCK_JOB_COMPLETED",
      { device: names.job(1), error: "No medium" },
      /vdb has ended: No medium/,
    ],
    ["a job's error", "BLOCK_JOB_ERROR", { device: names.job(0), action: "report" }, /job of disk vda/],
    ["a cancelled job", "BLOCK_JOB_CANCELLED", { device: names.job(0) }, /job of disk vda/],
    [
      "a used up scratch",
      "BLOCK_WRITE_THRESHOLD",
      { "node-name": names.node("f", 1) },
      /scratch space of disk vdb/,
    ],
    [
      "a write that failed in our filter",
      "BLOCK_IO_ERROR",
      { ...ioError, "node-name": names.node("b", 0) },
      /vda: Input/,
    ],
    [
      "a write that failed on the disk",
      "BLOCK_IO_ERROR",
      { ...ioError, "node-name": "#block123" },
      /error on disk vdb/,
    ],
    ["an export that went", "BLOCK_EXPORT_DELETED", { id: names.export(0) }, /export of disk vda/],
    ["the VM's end", "SHUTDOWN", { guest: true, reason: "guest-shutdown" }, /shut down/],
  ])("%s ends the point in time", async (_, event, data, message) => {
    const { monitor, client, watch } = await watched();
    monitor.event(event, data);
    await client.execute("query-jobs", undefined, never);
    expect(await failure(watch.check())).toMatchObject({
      code: "E_POINT_IN_TIME_LOST",
      message: expect.stringMatching(message) as string,
    });
    expect(await failure(watch.lost)).toBe(await failure(watch.check()));
  });

  test.each([
    ["another's job", "BLOCK_JOB_COMPLETED", { device: "mirror" }],
    ["another run's job", "BLOCK_JOB_CANCELLED", { device: "bk-ffffffffffff-job-0" }],
    ["another node's threshold", "BLOCK_WRITE_THRESHOLD", { "node-name": "theirs" }],
    ["a write that failed on another disk", "BLOCK_IO_ERROR", { ...ioError, "node-name": "drive7" }],
    [
      "a read of the guest that failed",
      "BLOCK_IO_ERROR",
      { ...ioError, operation: "read", "node-name": "drive0" },
    ],
    ["another's export", "BLOCK_EXPORT_DELETED", { id: "libvirt-0" }],
  ])("%s does not", async (_, event, data) => {
    const { monitor, client, watch } = await watched();
    for (let n = 0; n < 2000; n++) monitor.event(event, data); // more than a listener keeps
    await client.execute("query-jobs", undefined, never);
    await watch.check();
    watch.close();
    watch.close();
    await watch.check();
  });

  test("the connection's end does, and nothing after it was closed", async () => {
    const [one, other] = [await watched(), await watched()];
    one.monitor.drop();
    expect(await failure(one.watch.lost)).toMatchObject({ code: "E_POINT_IN_TIME_LOST" });
    other.watch.close();
    other.monitor.drop();
    await failure(other.client.execute("query-jobs", undefined, never));
    await other.watch.check();
  });
});
