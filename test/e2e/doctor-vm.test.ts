import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { GuestAgent } from "../../src/qemu/guest-agent.ts";
import { QmpClient } from "../../src/qemu/qmp/client.ts";
import { RunFile } from "../../src/qemu/run-file.ts";
import { runCli, runJson } from "../support/cli.ts";
import { createQcow2 } from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { bootGuest, type Guest } from "../support/guest/guest.ts";
import { HandledVm } from "../support/handled-vm.ts";

const never = new AbortController().signal;
const TOKEN = "0123456789ab";

interface FindingJson {
  readonly check: string;
  readonly status: string;
  readonly detail: string;
}

async function doctor(...args: string[]): Promise<Map<string, FindingJson>> {
  const { findings } = await runJson<{ findings: FindingJson[] }>(["doctor", ...args]);
  return new Map(findings.map((finding) => [finding.check, finding]));
}

/** The mark of a run that died. */
async function leaveMark(scratch: string, qmp: string): Promise<void> {
  await (await RunFile.create(scratch, TOKEN, qmp)).giveUp();
}

/** A classic backup of drive0, left behind, whose scratch has no room from the first write on. */
async function leaveFullRun(guest: Guest, monitor: QmpClient): Promise<void> {
  const path = join(guest.folder, `bk-${TOKEN}-0.qcow2`);
  await createQcow2(path, 128 * MiB);
  const [image, file] = [`bk-${TOKEN}-s0`, `bk-${TOKEN}-f0`];
  const full = { event: "none", iotype: "write", errno: 28 };
  for (const node of [
    {
      driver: "blkdebug",
      "node-name": file,
      image: { driver: "file", filename: path },
      "inject-error": [full],
    },
    { driver: "qcow2", "node-name": image, file, backing: "drive0" },
  ]) {
    await monitor.execute("blockdev-add", node, never);
  }
  const job = { "job-id": `bk-${TOKEN}-job-0`, "filter-node-name": `bk-${TOKEN}-b0` };
  const backup = { ...job, device: "drive0", target: image, sync: "none" };
  await monitor.execute("blockdev-backup", backup, never);
}

test("a guest that a dead backup left frozen, then one that its full scratch stopped: shown, and put right", async () => {
  const scratch = await temporaryFolder();
  const guest = await bootGuest({ writer: true });
  const source = [`qmp:${guest.qmp}`, "--guest-agent", guest.agent, "--scratch", scratch];
  const healthy = await doctor(...source);
  expect([...healthy.values()].filter(({ status }) => status !== "ok")).toEqual([]);
  expect(healthy.get("vm")).toMatchObject({ detail: "running" });
  expect(healthy.get("guest agent")).toMatchObject({ detail: expect.stringContaining("thawed") as string });

  const agent = await GuestAgent.connect(guest.agent, never);
  await agent.freeze(never);
  await agent.close();
  await leaveMark(scratch, guest.qmp);
  expect((await doctor(...source)).get("guest agent")).toMatchObject({ status: "warning" });
  expect((await doctor(...source, "--fix")).get("guest agent")).toMatchObject({ status: "fixed" });
  expect((await doctor(...source, "--fix")).get("guest agent")).toMatchObject({ status: "ok" });

  const monitor = await QmpClient.connect(guest.qmp, never);
  const stopped = monitor.listen(["STOP"]);
  await leaveFullRun(guest, monitor);
  await stopped.next(() => true, never);
  await monitor.close();
  await leaveMark(scratch, guest.qmp);
  const shown = await doctor(...source);
  expect(shown.get("vm")).toMatchObject({
    status: "warning",
    detail: expect.stringContaining("--fix") as string,
  });
  expect(shown.get("disk vd0")).toMatchObject({ detail: expect.stringContaining("nospace") as string });
  expect(shown.get("leftovers")).toMatchObject({ status: "warning" });
  expect(shown.get("guest agent")).toMatchObject({ status: "warning" });
  const fixed = await doctor(...source, "--fix");
  expect(fixed.get("vm")).toMatchObject({ status: "fixed" });
  expect(fixed.get("leftovers")).toMatchObject({ status: "fixed" });
  expect(fixed.get("guest agent")).toMatchObject({ status: "ok" });
  // the write that stopped it is done by now, and more come
  const before = /^W (\d+)\r?$/gm;
  const last = Math.max(...[...guest.console.log.matchAll(before)].map(([, number]) => Number(number)));
  await guest.console.waitFor(new RegExp(`^W ${last + 2}\\r?$`, "m"));
});

test("exit codes: warnings with --strict, a backup at work, what has failed, flags in the wrong place", async () => {
  const vm = await HandledVm.start([{ node: "drive0", size: MiB }], { folder: await temporaryFolder() });
  const source = [`qmp:${vm.qmp}`, "--scratch", vm.scratch];
  const code = async (...args: string[]): Promise<number | null> => (await runCli(["doctor", ...args])).code;
  expect(await code(...source)).toBe(0);
  await vm.leaveRun(TOKEN, "drive0");
  expect(await code(...source)).toBe(0);
  expect(await code(...source, "--strict")).toBe(16);
  await RunFile.create(vm.scratch, TOKEN, vm.qmp);
  expect(await code(...source, "--strict")).toBe(0);
  const busy = await runCli(["doctor", ...source, "--fix"]);
  expect(busy.code).toBe(11);
  expect(busy.stdout).toMatch(/run +failed +A run of ours is at work on this VM \(process \d+\)/);
  expect(busy.stderr).toMatch(/^error: A run of ours is at work/);
  expect(await code(`qmp:${vm.qmp}.none`)).toBe(14);
  const file = join(vm.folder, "file");
  await writeFile(file, "");
  expect(await code(`qmp:${vm.qmp}`, "--scratch", file)).toBe(2);
  for (const args of [["--fix"], ["nbd://h/x", "--fix"], ["nbd://h/x", "--guest-agent", "/x"]]) {
    const wrong = await runCli(["doctor", ...args]);
    expect(wrong).toMatchObject({ code: 2, stdout: "" });
    expect(wrong.stderr).toContain("is for a running QEMU");
  }
});
