import { readdir } from "node:fs/promises";
import { describe, expect, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import type { Range } from "../../src/disk/disk.ts";
import { readBitmapRanges } from "../../src/qemu/bitmap-ranges.ts";
import { MonitorGate, type MonitorPoint } from "../support/monitor-gate.ts";
import { failure } from "../support/outcomes.ts";
import { seeded } from "../support/seeded.ts";
import { GRANULE, VerbsVm } from "../support/verbs-vm.ts";

describe("the dirty ranges of a bitmap", () => {
  test("whatever they hold; it records on, and nothing else is left", async () => {
    const verbs = await VerbsVm.start();
    const { vm } = verbs;
    await verbs.add("mine");
    const before = { ...(await vm.picture()), files: [] };
    expect(await verbs.ranges("mine")).toEqual({
      disk: "dev-drive0",
      bitmap: "mine",
      granularity: GRANULE,
      size: 16 * MiB,
      ranges: [],
      bytes: 0,
    });
    await vm.write("drive0", 0, GRANULE);
    await vm.write("drive0", GRANULE, 512, 0); // zeros beside it are as dirty
    await vm.write("drive0", 4 * MiB + 100 * 512, 512);
    await vm.write("drive0", 16 * MiB - GRANULE, GRANULE);
    const dirty = [
      { offset: 0, length: 2 * GRANULE },
      { offset: 4 * MiB, length: GRANULE },
      { offset: 16 * MiB - GRANULE, length: GRANULE },
    ];
    expect(await verbs.ranges("mine")).toMatchObject({ ranges: dirty, bytes: 4 * GRANULE });
    expect(await vm.picture()).toEqual(before);
    await vm.write("drive0", 8 * MiB, GRANULE);
    expect(await verbs.ranges("mine")).toMatchObject({ bytes: 5 * GRANULE });
    const [disk] = (await vm.survey()).disks;
    expect(disk!.bitmaps).toMatchObject([{ recording: true, dirtyBytes: 5 * GRANULE }]);
    expect(verbs.warnings).toEqual([]);
  });

  test("of a disabled one, with its own granularity, to the disk's short end; of a raw disk's", async () => {
    const verbs = await VerbsVm.start();
    await verbs.add("fine", { disk: "dev-drive1", granularity: 4096 });
    await verbs.add("coarse", { disk: "dev-drive1", granularity: MiB });
    await verbs.vm.write("drive1", 8 * MiB, 4608);
    await verbs.vm.do("block-dirty-bitmap-disable", { node: "drive1", name: "fine" });
    await verbs.vm.write("drive1", 0, 512);
    const size = 8 * MiB + 4608;
    const end = { offset: 8 * MiB, length: 4608 };
    expect(await verbs.ranges("fine", "dev-drive1")).toMatchObject({
      size,
      granularity: 4096,
      ranges: [end],
    });
    expect(await verbs.ranges("coarse", "dev-drive1")).toMatchObject({
      granularity: MiB,
      ranges: [{ offset: 0, length: MiB }, end],
      bytes: MiB + 4608,
    });
    await verbs.add("raw", { disk: "dev-drive2" });
    await verbs.vm.write("drive2", MiB, MiB);
    const ofRaw = await verbs.ranges("raw", "dev-drive2");
    expect(ofRaw).toMatchObject({ ranges: [{ offset: MiB, length: MiB }] });
  });

  test.each([1, 2, 3, 4])("are those that were written (seed %i)", async (seed) => {
    const verbs = await VerbsVm.start();
    const random = seeded(seed);
    const granularity = 512 << random(10);
    await verbs.add("mine", { granularity });
    const dirty = new Set<number>();
    for (let count = random(30); count >= 0; count--) {
      const length = 512 * (1 + random(400));
      const offset = 512 * random((16 * MiB - length) / 512);
      await verbs.vm.write("drive0", offset, length, random(2));
      for (let at = Math.floor(offset / granularity); at * granularity < offset + length; at++) dirty.add(at);
    }
    const found = await verbs.ranges("mine");
    expect(found.ranges, `seed ${seed}`).toEqual(rangesOf(dirty, granularity));
    expect(found.bytes).toBe(dirty.size * granularity);
  });
});

function rangesOf(granules: ReadonlySet<number>, granularity: number): Range[] {
  const ranges: { offset: number; length: number }[] = [];
  for (const at of [...granules].sort((a, b) => a - b)) {
    const last = ranges.at(-1);
    if (last !== undefined && last.offset + last.length === at * granularity) last.length += granularity;
    else ranges.push({ offset: at * granularity, length: granularity });
  }
  return ranges;
}

describe("refused, and nothing is changed", () => {
  test.each([
    ["no such disk", "mine", "sda", { kind: "notFound", code: "E_DISK_UNKNOWN" }],
    ["no such bitmap", "nine", "dev-drive0", { kind: "notFound", code: "E_BITMAP_UNKNOWN" }],
  ])("%s", async (_, name, disk, error) => {
    const verbs = await VerbsVm.start();
    await verbs.add("mine");
    const before = await verbs.vm.picture();
    expect(await failure(verbs.ranges(name, disk))).toMatchObject(error);
    expect(await verbs.vm.picture()).toEqual(before);
  });

  test("a bitmap that QEMU lost", async () => {
    const verbs = await VerbsVm.start();
    await verbs.lose("mine");
    const refused = await failure(verbs.ranges("mine"));
    expect(refused).toMatchObject({ kind: "source", code: "E_BITMAP_INCONSISTENT" });
  });

  test("while another program has QEMU's NBD server, or the bitmap", async () => {
    const verbs = await VerbsVm.start();
    await verbs.add("mine");
    await verbs.addByHand("used", { disabled: true });
    await verbs.vm.exportByHand("drive0", { bitmaps: ["used"] });
    const before = { ...(await verbs.vm.picture()), files: [] };
    const taken = await failure(verbs.ranges("mine"));
    expect(taken).toMatchObject({ kind: "locked", code: "E_NBD_SERVER_TAKEN" });
    expect((taken as Error).message).toContain("theirs");
    expect(await failure(verbs.ranges("used"))).toMatchObject({ kind: "locked", code: "E_BITMAP_BUSY" });
    expect(await verbs.vm.picture()).toEqual(before);
  });

  test("a VM with iothreads, on a QEMU that does not survive it", async () => {
    const verbs = await VerbsVm.start("-object", "iothread,id=io0");
    await verbs.add("mine");
    const before = { ...(await verbs.vm.picture()), files: [] };
    const { version } = await verbs.vm.survey();
    const asked = await verbs.ranges("mine").catch((error: unknown) => error);
    if (version.major < 9) expect(asked).toMatchObject({ kind: "usage", code: "E_IOTHREAD" });
    else expect(asked).toMatchObject({ bytes: 0 });
    expect({ ...(await verbs.vm.picture()), files: [] }).toEqual(before);
  });
});

/** The commands of a call, in their order. At the last one all has been read. */
const POINTS: readonly MonitorPoint[] = [
  { command: "nbd-server-start", when: "before" },
  { command: "nbd-server-start", when: "after" },
  { command: "transaction", when: "after" },
  { command: "block-export-add", when: "before" },
  { command: "block-export-add", when: "after" },
  { command: "block-export-del", when: "before" },
];

describe.each(POINTS)("interrupted $when $command", (point) => {
  interface Held {
    readonly verbs: VerbsVm;
    readonly gate: MonitorGate;
    readonly run: AbortController;
    /** Its outcome: ranges, or an error. */
    readonly asked: Promise<unknown>;
    /** Of the time before, and no files. */
    readonly before: object;
  }

  async function hold(): Promise<Held> {
    const verbs = await VerbsVm.start();
    await verbs.add("mine");
    const before = { ...(await verbs.vm.picture()), files: [] };
    const gate = await MonitorGate.open(verbs.vm.qmp);
    const run = new AbortController();
    const reached = gate.arm(point);
    const options = { ...verbs.options, qmp: gate.path };
    const asked = readBitmapRanges(options, { disk: "dev-drive0", name: "mine" }, run.signal);
    const outcome = asked.catch((error: unknown) => error);
    await reached;
    return { verbs, gate, run, asked: outcome, before };
  }

  function expectOutcome(outcome: unknown, error: object): void {
    expect(outcome).toMatchObject(point.command === "block-export-del" ? { bytes: 0 } : error);
  }

  test("by its signal: nothing is left", async () => {
    const { verbs, gate, run, asked, before } = await hold();
    const reason = new Error("enough");
    run.abort(reason);
    gate.release();
    expectOutcome(await asked, reason);
    expect(await verbs.vm.picture()).toEqual(before);
    expect(verbs.warnings).toEqual([]);
  });

  test("as the monitor hangs up: nothing is left", async () => {
    const { verbs, gate, asked, before } = await hold();
    gate.drop();
    expectOutcome(await asked, { kind: "source", code: "E_QMP_GONE" });
    expect(await verbs.vm.picture()).toEqual(before);
    expect(verbs.warnings).toEqual([]);
  });

  test("as QEMU is killed: no file is left", async () => {
    const { verbs, gate, asked } = await hold();
    gate.refuse();
    await verbs.vm.kill();
    gate.drop();
    expectOutcome(await asked, { kind: "source", code: "E_QMP_GONE" });
    expect(await readdir(verbs.vm.scratch)).toEqual([]);
    expect(verbs.warnings).toEqual([]);
  });
});
