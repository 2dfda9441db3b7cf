import { access, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { generationBitmap } from "../../src/qemu/names.ts";
import { QmpClient } from "../../src/qemu/qmp/client.ts";
import { RunFile } from "../../src/qemu/run-file.ts";
import { checkUpVm, type CheckupOptions } from "../../src/qemu/vm-checkup.ts";
import type { VmFinding } from "../../src/qemu/vm-findings.ts";
import { uuidv7 } from "../../src/repository/names.ts";
import { FakeAgent } from "../support/fake-agent.ts";
import { startFakeMonitor } from "../support/fake-monitor.ts";
import { temporaryFolder } from "../support/folder.ts";
import { HandledVm, type HandledDisk } from "../support/handled-vm.ts";
import { startLineServer } from "../support/line-server.ts";

const never = new AbortController().signal;
const TOKEN = "0123456789ab";
const DISKS: readonly HandledDisk[] = [
  { node: "drive0", size: 16 * MiB },
  { node: "drive1", size: 8 * MiB, format: "raw" },
];
const OURS = generationBitmap(uuidv7(1), uuidv7(2), "dev-drive0");

let vm: HandledVm;

beforeEach(async () => {
  vm = await HandledVm.start(DISKS, { folder: await temporaryFolder() });
});

function checkUp(more: Partial<CheckupOptions> = {}): Promise<VmFinding[]> {
  return checkUpVm({ qmp: vm.qmp, scratchDir: vm.scratch, fix: false, ...more }, never);
}

function fix(more: Partial<CheckupOptions> = {}): Promise<VmFinding[]> {
  return checkUp({ ...more, fix: true });
}

function of(findings: readonly VmFinding[], check: string): VmFinding[] {
  return findings.filter((finding) => finding.check === check);
}

function unwell(findings: readonly VmFinding[]): string[] {
  return findings.filter(({ status }) => status !== "ok").map(({ check, status }) => `${check} ${status}`);
}

async function addBitmap(name: string, more: object = {}): Promise<void> {
  await vm.do("block-dirty-bitmap-add", { node: "drive0", name, persistent: true, ...more });
}

/** A run file of a run that died. */
async function leaveMark(stopped = false): Promise<void> {
  const mark = await RunFile.create(vm.scratch, TOKEN, vm.qmp);
  if (stopped) await mark.setStopped(true);
  await mark.giveUp();
}

describe("a healthy VM", () => {
  test("what a backup has there; nothing is changed, fixed or not", async () => {
    await addBitmap(OURS);
    await addBitmap("mine");
    await vm.write("drive0", 0, 65536);
    const agent = await FakeAgent.start();
    const before = await vm.picture();
    const findings = await checkUp({ agent: agent.path });
    expect(unwell(findings)).toEqual([]);
    const details = findings.map(({ check, detail }) => `${check}: ${detail}`);
    for (const expected of [
      /^monitor: QEMU \d+\.\d+\.\d+ at /,
      /^fleecing classic: possible$/,
      /^fleecing filter: Filter fleecing does not work here: QEMU 7\.2 may give .*; use --fleecing classic$/,
      /^disk dev-drive0: 16.0 MiB, qcow2, bitmaps outlive QEMU$/,
      /^disk dev-drive1: 8.0 MiB, raw, bitmaps do not outlive QEMU/,
      /^bitmap: generation .* on dev-drive0: recording, 64.0 KiB dirty$/,
      /^foreign: bitmap mine of dev-drive0: left alone$/,
      /^scratch: \S+ \(to be made\): .* free, a backup takes up to/,
      /^guest agent: answers at .*; the guest is thawed$/,
      /^vm: prelaunch$/,
    ]) {
      expect(
        details.filter((detail) => expected.test(detail)),
        String(expected),
      ).toHaveLength(1);
    }
    expect(await fix({ agent: agent.path })).toEqual(findings);
    expect(await vm.picture()).toEqual(before);
    await expect(access(vm.scratch)).rejects.toThrow("ENOENT");
    expect(new Set(agent.executed)).toEqual(new Set(["guest-sync-delimited", "guest-fsfreeze-status"]));
  });

  test("a disabled bitmap will not do", async () => {
    await addBitmap(OURS, { disabled: true });
    const [disabled] = of(await checkUp(), "bitmap");
    expect(disabled).toMatchObject({
      status: "warning",
      detail: expect.stringContaining("disabled") as string,
    });
  });
});

test("a bitmap that QEMU lost is one to look at", async () => {
  const folder = await temporaryFolder();
  for (const end of ["quit", "kill"] as const) {
    vm = await HandledVm.start(DISKS, { folder });
    if (end === "quit") await addBitmap(OURS);
    await vm[end]();
  }
  vm = await HandledVm.start(DISKS, { folder });
  expect(of(await checkUp(), "bitmap")).toMatchObject([
    { status: "warning", detail: expect.stringContaining("lost") as string },
  ]);
});

describe("what a dead run left", () => {
  test("is shown, and goes with --fix; once more does no harm", async () => {
    await addBitmap(OURS);
    await addBitmap("mine");
    const before = { ...(await vm.picture()), files: [] };
    await vm.leaveRun(TOKEN, "drive0");
    await leaveMark();
    const dirty = await vm.picture();

    const shown = await checkUp();
    expect(unwell(shown)).toEqual(["leftovers warning"]);
    expect(of(shown, "leftovers")[0]!.detail).toMatch(/job bk-.*node bk-.*bitmap bk-.*-tmp of drive0.*--fix/);
    expect(of(shown, "disk dev-drive0")[0]!.detail).toContain("a run of ours is over it");
    expect(of(shown, "bitmap")).toMatchObject([{ detail: expect.stringContaining("dev-drive0") as string }]);
    expect(await vm.picture()).toEqual(dirty);

    const fixed = await fix();
    expect(unwell(fixed)).toEqual(["leftovers fixed"]);
    expect(of(fixed, "leftovers")[0]!.detail).toMatch(/^cleared: .*job bk-0123456789ab-job-0/);
    expect(await vm.picture()).toEqual(before);

    expect(unwell(await fix())).toEqual([]);
    expect(await vm.picture()).toEqual(before);
  });

  test("a VM that it stopped runs again", async () => {
    await vm.do("cont");
    await vm.do("stop");
    await leaveMark(true);
    expect(unwell(await checkUp())).toEqual(["leftovers warning", "vm warning"]);
    expect((await vm.survey()).status).toBe("paused");
    expect(unwell(await fix())).toEqual(["leftovers fixed", "vm fixed"]);
    expect((await vm.survey()).status).toBe("running");
  });

  test("a VM that somebody else stopped stays so", async () => {
    await vm.do("cont");
    await vm.do("stop");
    await leaveMark();
    expect(unwell(await fix())).toEqual(["leftovers fixed"]);
    expect((await vm.survey()).status).toBe("paused");
  });

  test.each(["running", "paused"])("a guest that it left frozen is thawed (VM %s)", async (status) => {
    await vm.do("cont");
    if (status === "paused") await vm.do("stop");
    await leaveMark(status === "paused");
    const agent = await FakeAgent.start();
    agent.frozen = true;
    const shown = of(await checkUp({ agent: agent.path }), "guest agent");
    expect(shown).toMatchObject([{ status: "warning", detail: expect.stringContaining("--fix") as string }]);
    expect(agent.frozen).toBe(true);
    const fixed = await fix({ agent: agent.path });
    expect(of(fixed, "guest agent")).toMatchObject([{ status: "fixed" }]);
    expect(agent.frozen).toBe(false);
    expect(unwell(await fix({ agent: agent.path }))).toEqual([]);
  });

  test("a frozen guest whose agent hangs is asked again when the rest is cleared", async () => {
    await vm.do("cont");
    await leaveMark();
    const agent = await FakeAgent.start();
    agent.frozen = true;
    agent.hold("guest-fsfreeze-status"); // never let go
    const fixing = fix({ agent: agent.path });
    await agent.until(({ holding }) => holding !== undefined);
    agent.hangUp();
    const fixed = await fixing;
    expect(of(fixed, "leftovers")).toMatchObject([{ status: "fixed" }]);
    expect(of(fixed, "guest agent")).toMatchObject([
      { status: "failed", detail: expect.stringContaining("guest-fsfreeze-thaw thaws it") as string },
    ]);
    expect(agent.clients).toBe(2);
  });
});

describe("what is not ours", () => {
  test("stays: exports, jobs, bitmaps", async () => {
    await addBitmap("mine");
    await vm.exportByHand("drive1");
    const target = { driver: "null-co", "node-name": "target", size: 16 * MiB };
    await vm.do("blockdev-add", target);
    await vm.do("blockdev-mirror", { "job-id": "copy", device: "drive0", target: "target", sync: "none" });
    await leaveMark();
    const before = { ...(await vm.picture()), files: [] };
    const findings = await fix();
    expect(of(findings, "foreign")).toMatchObject([
      { status: "warning", detail: expect.stringContaining("export theirs") as string },
      {
        status: "ok",
        detail: expect.stringMatching(/job copy \(mirror\), bitmap mine of .*left alone/) as string,
      },
    ]);
    expect(await vm.picture()).toEqual(before);
  });

  test("a guest that somebody else froze stays frozen", async () => {
    const agent = await FakeAgent.start();
    agent.frozen = true;
    const findings = await fix({ agent: agent.path });
    expect(of(findings, "guest agent")).toMatchObject([
      { status: "warning", detail: expect.stringContaining("no trace of a backup of ours") as string },
    ]);
    expect(agent.frozen).toBe(true);
  });

  test("a run at work is left alone, and so is all else meanwhile", async () => {
    await vm.leaveRun(TOKEN, "drive0");
    await RunFile.create(vm.scratch, TOKEN, vm.qmp);
    await addBitmap("bk-fedcba987654-tmp", { persistent: false });
    const agent = await FakeAgent.start();
    agent.frozen = true;
    const before = await vm.picture();
    const shown = await checkUp({ agent: agent.path });
    expect(of(shown, "run")).toMatchObject([
      { status: "ok", detail: expect.stringContaining(`process ${process.pid}`) as string },
    ]);
    expect(unwell(shown)).toEqual(["leftovers warning"]);
    const refused = await fix({ agent: agent.path });
    expect(of(refused, "run")).toMatchObject([
      { status: "failed", error: { kind: "locked", code: "E_VM_BUSY", context: { pid: process.pid } } },
    ]);
    expect(await vm.picture()).toEqual(before);
    expect(agent).toMatchObject({ frozen: true, clients: 0 });
  });
});

test("a run at work that has the monitor is told by its mark", async () => {
  const holder = await QmpClient.connect(vm.qmp, never);
  const foreign = await checkUp();
  expect(foreign).toMatchObject([{ check: "monitor", status: "failed", error: { code: "E_QMP_BUSY" } }]);
  await leaveMark();
  await RunFile.create(vm.scratch, "fedcba987654", vm.qmp);
  const ours = await fix();
  expect(ours).toMatchObject([
    {
      check: "monitor",
      status: "failed",
      error: { kind: "locked", code: "E_VM_BUSY", context: { pid: process.pid } },
    },
  ]);
  await holder.close();
});

describe("what is wrong", () => {
  test("no monitor, and one that is none", async () => {
    const nowhere = await checkUp({ qmp: join(vm.folder, "nothing.sock") });
    expect(nowhere).toMatchObject([{ check: "monitor", status: "failed", error: { code: "E_QMP_CONNECT" } }]);
    const chatty = await startLineServer({ connected: (socket) => void socket.write("220 mail\r\n") });
    const other = await checkUp({ qmp: chatty.path });
    expect(other).toMatchObject([{ check: "monitor", status: "failed", error: { code: "E_QMP_PROTOCOL" } }]);
  });

  test("a monitor that goes away in the middle", async () => {
    const monitor = await startFakeMonitor({
      command: ({ execute }) => {
        if (execute === "query-status") monitor.drop();
        return undefined;
      },
    });
    const findings = await checkUp({ qmp: monitor.path });
    expect(findings).toMatchObject([{ check: "monitor", status: "failed", error: { code: "E_QMP_GONE" } }]);
  });

  test("no agent, one that is silent", async () => {
    const missing = await checkUp({ agent: join(vm.folder, "nothing.sock") });
    expect(of(missing, "guest agent")).toMatchObject([
      { status: "failed", error: { code: "E_AGENT_CONNECT" } },
    ]);
    const agent = await FakeAgent.start();
    agent.running = false;
    const standing = await checkUp({ agent: agent.path });
    expect(of(standing, "guest agent")).toMatchObject([
      { status: "warning", detail: expect.stringContaining("the VM stands (prelaunch)") as string },
    ]);
    await vm.do("cont");
    const silent = await checkUp({ agent: agent.path });
    expect(of(silent, "guest agent")).toMatchObject([
      { status: "failed", error: { code: "E_AGENT_SILENT" } },
    ]);
  });

  test("a scratch folder that is none, or has too little room", async () => {
    const file = join(vm.folder, "file");
    await writeFile(file, "");
    for (const scratchDir of [file, join(file, "scratch")]) {
      const findings = await checkUp({ scratchDir });
      expect(unwell(findings)).toEqual(["scratch failed"]);
      expect(of(findings, "scratch")).toMatchObject([{ error: { kind: "usage", code: "E_SCRATCH_FOLDER" } }]);
    }
    vm = await HandledVm.start([{ node: "huge", size: 2 ** 50 }], { folder: await temporaryFolder() });
    expect(of(await checkUp(), "scratch")).toMatchObject([
      { status: "warning", detail: expect.stringMatching(/up to 1040 TiB: it ends when/) as string },
    ]);
  });

  test("no disk, and iothreads", async () => {
    vm = await HandledVm.start([], {
      folder: await temporaryFolder(),
      args: ["-object", "iothread,id=io0"],
    });
    const findings = await checkUp();
    const { version } = await vm.survey();
    expect(of(findings, "disks")).toMatchObject([{ status: "failed", error: { code: "E_NO_DISKS" } }]);
    const classic = of(findings, "fleecing classic");
    if (version.major >= 9) expect(classic).toMatchObject([{ status: "ok" }]);
    else expect(classic).toMatchObject([{ status: "failed", error: { code: "E_IOTHREAD" } }]);
  });
});
