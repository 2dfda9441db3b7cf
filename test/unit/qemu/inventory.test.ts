import { describe, expect, onTestFinished, test } from "vitest";
import { surveyVm, type Vm } from "../../../src/qemu/inventory.ts";
import { QmpClient } from "../../../src/qemu/qmp/client.ts";
import { startFakeMonitor } from "../../support/fake-monitor.ts";
import { failure } from "../../support/outcomes.ts";

const never = new AbortController().signal;

/** What QEMU 7.2 says of a block node, cut down to what may matter. */
function node(name: string | undefined, more: object = {}): object {
  return {
    ...(name !== undefined && { "node-name": name }),
    drv: "qcow2",
    ro: false,
    iops: 0,
    image: {
      filename: "/vm/a.qcow2",
      format: "qcow2",
      "virtual-size": 10485760,
      "format-specific": { type: "qcow2", data: { compat: "1.1", "refcount-bits": 16 } },
    },
    ...more,
  };
}

function device(more: object): object {
  return { device: "", locked: false, removable: false, type: "unknown", "io-status": "ok", ...more };
}

async function survey(answers: Readonly<Record<string, unknown>>): Promise<Vm> {
  const all: Readonly<Record<string, unknown>> = {
    "query-status": { status: "running", running: true, singlestep: false },
    "query-block": [],
    "query-named-block-nodes": [],
    "query-jobs": [],
    "query-block-exports": [],
    "query-iothreads": [],
    ...answers,
  };
  const monitor = await startFakeMonitor({ command: ({ execute }) => ({ return: all[execute] }) });
  const client = await QmpClient.connect(monitor.path, never);
  onTestFinished(() => client.close());
  return await surveyVm(client, never);
}

describe("the disks of a VM", () => {
  test.each([
    [
      "a -drive's id",
      { device: "drive-virtio0", qdev: "/machine/peripheral/x/virtio-backend" },
      "drive-virtio0",
    ],
    ["a virtio device's id", { qdev: "/machine/peripheral/vd0/virtio-backend" }, "vd0"],
    ["a SCSI device's id", { qdev: "sd0" }, "sd0"],
    [
      "the node of a device without one",
      { qdev: "/machine/peripheral-anon/device[0]/virtio-backend" },
      "drive0",
    ],
    ["what can be kept of an odd id", { device: "-my disk/2" }, "my-disk-2"],
    ["something, when nothing can be kept", { device: "@" }, "disk"],
  ])("are called by %s", async (_, more, name) => {
    const { disks } = await survey({
      "query-block": [device({ qdev: "q", ...more, inserted: node("drive0") })],
    });
    expect(disks.map((disk) => disk.name)).toEqual([name]);
  });

  test("have names that differ", async () => {
    const one = (id: string, at: string): object => device({ device: id, qdev: at, inserted: node(at) });
    const { disks } = await survey({ "query-block": [one("a b", "q0"), one("a-b", "q1"), one("a/b", "q2")] });
    expect(disks.map((disk) => disk.name)).toEqual(["a-b", "a-b-2", "a-b-3"]);
  });

  test("are those with a medium that stays in and a device that the guest sees", async () => {
    const { disks } = await survey({
      "query-block": [
        device({ qdev: "cd0", removable: true, inserted: node("iso") }),
        device({ qdev: "cd1", removable: true }),
        device({ qdev: "nothing-in-it" }),
        device({ device: "if-none", inserted: node("unused") }),
        device({ qdev: "vd0", inserted: node("drive0") }),
      ],
    });
    expect(disks.map((disk) => disk.node)).toEqual(["drive0"]);
  });

  test.each([
    [true, {}],
    [false, { drv: "raw" }],
    [false, { ro: true }],
    [
      false,
      {
        image: {
          filename: "",
          "virtual-size": 1,
          "format-specific": { type: "qcow2", data: { compat: "0.10" } },
        },
      },
    ],
  ])("keep bitmaps: %s for %j", async (canPersist, more) => {
    const { disks } = await survey({ "query-block": [device({ qdev: "q", inserted: node("n", more) })] });
    expect(disks[0]).toMatchObject({ canPersist });
  });

  test("have bitmaps, of which those of jobs have no name", async () => {
    const bitmap = { recording: true, persistent: true, busy: false, granularity: 65536, count: 131072 };
    const listed = [
      { ...bitmap, name: "a" },
      { ...bitmap, name: "b", inconsistent: true, recording: false },
      { ...bitmap, recording: false },
    ];
    const inserted = node("drive0", { "dirty-bitmaps": listed });
    const vm = await survey({
      "query-block": [device({ qdev: "vd0", inserted, "io-status": "nospace" })],
      "query-named-block-nodes": [inserted, node(undefined)],
    });
    expect(vm.disks[0]!.bitmaps).toEqual([
      {
        name: "a",
        recording: true,
        persistent: true,
        busy: false,
        inconsistent: false,
        granularity: 65536,
        dirtyBytes: 131072,
      },
      {
        name: "b",
        recording: false,
        persistent: true,
        busy: false,
        inconsistent: true,
        granularity: 65536,
        dirtyBytes: 131072,
      },
    ]);
    expect(vm.disks[0]!.ioStatus).toBe("nospace");
    expect(vm.nodes).toHaveLength(1);
    expect(vm.nodes[0]!.bitmaps).toEqual(vm.disks[0]!.bitmaps);
  });
});

test("jobs, exports, iothreads and the status", async () => {
  expect(
    await survey({
      "query-status": { status: "io-error" },
      "query-jobs": [{ id: "j", type: "mirror", status: "ready", "current-progress": 0 }],
      "query-block-exports": [{ id: "e", type: "nbd", "node-name": "n", "shutting-down": false }],
      "query-iothreads": [{ id: "io0", "thread-id": 1 }],
    }),
  ).toMatchObject({
    status: "io-error",
    version: { major: 7, minor: 2, micro: 22 },
    jobs: [{ id: "j", type: "mirror", status: "ready" }],
    exports: [{ id: "e", node: "n" }],
    iothreads: true,
  });
});

test.each([
  ["query-status", []],
  ["query-block", [{ device: 1 }]],
  ["query-block", [device({ qdev: "q", inserted: { ...node("n"), image: {} } })]],
  ["query-jobs", {}],
])("an answer of %s that cannot be right is refused: %j", async (command, answer) => {
  expect(await failure(survey({ [command]: answer }))).toMatchObject({
    kind: "source",
    code: "E_QMP_ANSWER",
    context: { command },
  });
});
