import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, onTestFinished, test } from "vitest";
import { QmpClient } from "../../src/qemu/qmp/client.ts";
import { temporaryFolder } from "../support/folder.ts";
import { failure } from "../support/outcomes.ts";
import { startQemuVm, writeAsGuest, type QemuVm, type QemuVmOptions } from "../support/qemu-vm.ts";

const never = new AbortController().signal;
const ALL = (): boolean => true;

async function vmOf(options?: QemuVmOptions): Promise<QemuVm> {
  const vm = await startQemuVm(options);
  onTestFinished(() => vm.stop());
  return vm;
}

describe("the monitor of a real QEMU", () => {
  test("greets, answers, refuses", async () => {
    const { qmp } = await vmOf();
    const client = await QmpClient.connect(qmp, never);
    expect(client.version.major).toBeGreaterThanOrEqual(7);
    expect(await client.execute("query-status", undefined, never)).toMatchObject({ running: false });
    expect(await failure(client.execute("no-such-command", undefined, never))).toMatchObject({
      code: "E_QMP_COMMAND",
      context: { class: "CommandNotFound", command: "no-such-command" },
    });
    const refused = failure(client.execute("blockdev-del", { "node-name": "none" }, never));
    expect(await refused).toMatchObject({ context: { class: "GenericError" } });
    await client.close();
  });

  test("serves one client; the second one waits in its queue, and the queue has an end", async () => {
    const { qmp } = await vmOf();
    const first = await QmpClient.connect(qmp, never);
    const brief = { greetingMs: 100 };
    const others = await Promise.all([1, 2, 3, 4].map(() => failure(QmpClient.connect(qmp, never, brief))));
    for (const other of others) expect(other).toMatchObject({ kind: "locked", code: "E_QMP_BUSY" });
    const second = QmpClient.connect(qmp, never);
    await first.close();
    const client = await second;
    expect(await client.execute("query-name", undefined, never)).toEqual({});
    await client.close();
  });

  test("many commands at once are answered each", async () => {
    const { qmp } = await vmOf();
    const client = await QmpClient.connect(qmp, never);
    const answers = await Promise.all(
      Array.from({ length: 100 }, (_, index) =>
        client.execute(index % 2 ? "query-name" : "query-status", {}, never),
      ),
    );
    answers.forEach((answer, index) => expect("running" in (answer as object)).toBe(index % 2 === 0));
    await client.close();
  });

  test("its events are heard, before and after the answer", async () => {
    const vm = await vmOf();
    const client = await QmpClient.connect(vm.qmp, never);
    const listener = client.listen(["RESUME", "STOP", "SHUTDOWN"]);
    await client.execute("cont", undefined, never);
    await client.execute("stop", undefined, never);
    expect(await listener.next(({ event }) => event === "STOP", never)).toMatchObject({ data: {} });
    const resumed = await listener.next(ALL, never);
    expect(resumed.event).toBe("RESUME");
    expect(Math.abs(resumed.timestamp - Date.now())).toBeLessThan(3600_000);
    await client.execute("quit", undefined, never);
    expect(await listener.next(ALL, never)).toMatchObject({ event: "SHUTDOWN", data: { guest: false } });
    expect(await vm.exited).toBe(0);
    expect(await failure(client.execute("query-status", undefined, never))).toMatchObject({
      code: "E_QMP_GONE",
    });
    expect(await failure(QmpClient.connect(vm.qmp, never))).toMatchObject({ code: "E_QMP_CONNECT" });
  });

  test("killed while a command waits", async () => {
    const vm = await vmOf();
    const client = await QmpClient.connect(vm.qmp, never);
    process.kill(vm.pid, "SIGSTOP");
    const waiting = failure(client.execute("query-status", undefined, never));
    process.kill(vm.pid, "SIGKILL");
    expect(await waiting).toMatchObject({ code: "E_QMP_GONE" });
    expect(await vm.exited).toBe("SIGKILL");
  });

  test("hangs: commands end in time, and it may come back", async () => {
    const vm = await vmOf();
    const client = await QmpClient.connect(vm.qmp, never, { commandMs: 100 });
    process.kill(vm.pid, "SIGSTOP");
    expect(await failure(client.execute("query-name", undefined, never))).toMatchObject({
      code: "E_QMP_TIMEOUT",
    });
    process.kill(vm.pid, "SIGCONT");
    await expect
      .poll(() => client.execute("query-status", undefined, never).catch(() => undefined))
      .toBeDefined();
    await client.close();
  });

  test("tells what it can do", async () => {
    const { qmp } = await vmOf();
    const client = await QmpClient.connect(qmp, never);
    const schema = await client.schema(never);
    expect(await client.schema(never)).toBe(schema);
    expect(schema.hasCommand("blockdev-backup")).toBe(true);
    expect(schema.hasCommand("BLOCK_JOB_CANCELLED")).toBe(false);
    expect(schema.hasEvent("BLOCK_WRITE_THRESHOLD")).toBe(true);
    expect(schema.hasEvent("blockdev-backup")).toBe(false);
    expect(schema.hasArgument("blockdev-backup", ["filter-node-name"])).toBe(true);
    expect(schema.hasArgument("blockdev-backup", ["no-such"])).toBe(false);
    expect(schema.hasArgument("no-such", [])).toBe(false);
    expect(schema.valuesOf("transaction", ["actions", "type"])).toContain("blockdev-backup");
    expect(schema.hasArgument("transaction", ["actions", "type=blockdev-backup", "data", "sync"])).toBe(true);
    expect(schema.hasArgument("transaction", ["actions", "type=abort", "data", "sync"])).toBe(false);
    expect(schema.valuesOf("blockdev-add", ["driver=copy-before-write", "on-cbw-error"])).toEqual([
      "break-guest-write",
      "break-snapshot",
    ]);
    expect(schema.hasArgument("blockdev-add", ["driver=snapshot-access"])).toBe(true);
    expect(schema.hasArgument("block-export-add", ["type=nbd", "bitmaps", "node"])).toBe(true);
    await client.close();
  });

  test("a disk, written as a guest would, and what QEMU then says of it", async () => {
    const path = join(await temporaryFolder(), "disk.qcow2");
    await promisify(execFile)("qemu-img", ["create", "-q", "-f", "qcow2", path, "16M"]);
    const { qmp } = await vmOf({ disks: [{ node: "drive0", path }] });
    const client = await QmpClient.connect(qmp, never);
    await client.execute("block-dirty-bitmap-add", { node: "drive0", name: "b" }, never);
    await writeAsGuest(client, "drive0", { offset: 65536, length: 65536, byte: 7 });
    expect(await client.execute("query-block", undefined, never)).toMatchObject([
      { inserted: { "node-name": "drive0", "dirty-bitmaps": [{ name: "b", count: 65536 }] } },
    ]);
    await client.close();
  });
});
