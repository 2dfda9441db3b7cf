import { join } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { listBitmaps, type BitmapList, type NewBitmap } from "../../src/qemu/bitmap-verbs.ts";
import { generationBitmap } from "../../src/qemu/names.ts";
import { RunFile } from "../../src/qemu/run-file.ts";
import { uuidv7 } from "../../src/repository/names.ts";
import { qemuImg } from "../support/exported-images.ts";
import { failure } from "../support/outcomes.ts";
import { GRANULE, VerbsVm } from "../support/verbs-vm.ts";

const TOKEN = "0123456789ab";
const [REPOSITORY, OTHER, GENERATION] = [uuidv7(1), uuidv7(2), uuidv7(3)] as const;
const OURS = generationBitmap(REPOSITORY, GENERATION, "dev-drive0");
const THEIRS = generationBitmap(OTHER, GENERATION, "dev-drive0");

let verbs: VerbsVm;

beforeEach(async () => {
  verbs = await VerbsVm.start();
});

function list(): Promise<BitmapList> {
  return listBitmaps(verbs.options, new AbortController().signal);
}

async function bitmapsOfDrive0(): Promise<string[]> {
  return Object.keys((await verbs.vm.bitmaps())["drive0"] ?? {}).sort();
}

describe("list", () => {
  test("the disks, and whose each bitmap is: of two repositories, of a dead run, of others", async () => {
    for (const name of [OURS, THEIRS, "mine"]) await verbs.addByHand(name);
    await verbs.addByHand(`bk-${TOKEN}-tmp`, { persistent: false, disabled: true });
    await verbs.vm.write("drive0", MiB, GRANULE);
    const { disks, nodes } = await list();
    expect(disks.map(({ disk, size }) => [disk, size])).toEqual([
      ["dev-drive0", 16 * MiB],
      ["dev-drive1", 8 * MiB + 4608],
      ["dev-drive2", 8 * MiB],
    ]);
    const of = new Map(disks[0]!.bitmaps.map((bitmap) => [bitmap.name, bitmap]));
    const recording = { recording: true, persistent: true, busy: false, dirtyBytes: GRANULE };
    const owner = { kind: "generation", generation: GENERATION, disk: "dev-drive0" };
    expect([...of.keys()].sort()).toEqual([`bk-${TOKEN}-tmp`, OURS, THEIRS, "mine"].sort());
    expect(of.get(OURS)).toMatchObject({ ...recording, owner: { ...owner, repository: REPOSITORY } });
    expect(of.get(THEIRS)).toMatchObject({ ...recording, owner: { ...owner, repository: OTHER } });
    expect(of.get("mine")).toMatchObject({ ...recording, owner: { kind: "foreign" } });
    expect(of.get(`bk-${TOKEN}-tmp`)).toMatchObject({
      recording: false,
      dirtyBytes: 0,
      owner: { kind: "run", run: TOKEN, pid: null },
    });
    expect(disks.slice(1).map(({ bitmaps }) => bitmaps)).toEqual([[], []]);
    expect(nodes).toEqual([]);
  });

  test("a run at work, told by its process, and the bitmaps under its filter", async () => {
    const { vm } = verbs;
    await verbs.addByHand("mine");
    await vm.leaveRun(TOKEN, "drive0");
    await RunFile.create(vm.scratch, TOKEN, vm.qmp);
    const before = await vm.picture();
    const [disk] = (await list()).disks;
    const owners = new Map(disk!.bitmaps.map(({ name, owner }) => [name, owner]));
    expect([...owners.keys()].sort()).toEqual([`bk-${TOKEN}-tmp`, "mine"]);
    expect(owners.get("mine")).toEqual({ kind: "foreign" });
    expect(owners.get(`bk-${TOKEN}-tmp`)).toEqual({ kind: "run", run: TOKEN, pid: process.pid });
    expect(await vm.picture()).toEqual(before);
  });

  test("those on an image below a snapshot, which no disk's writes reach first", async () => {
    await verbs.addByHand("mine");
    await verbs.vm.do("blockdev-snapshot-sync", {
      "node-name": "drive0",
      "snapshot-file": join(verbs.vm.folder, "overlay.qcow2"),
      "snapshot-node-name": "over0",
    });
    const { disks, nodes } = await list();
    expect(disks.find(({ disk }) => disk === "dev-drive0")!.bitmaps).toEqual([]);
    expect(nodes).toMatchObject([{ node: "drive0", bitmaps: [{ name: "mine" }] }]);
  });

  test("one that was lost in a crash", async () => {
    await verbs.lose("mine");
    const [disk] = (await list()).disks;
    expect(disk!.bitmaps).toMatchObject([{ name: "mine", inconsistent: true, recording: false }]);
  });
});

describe("add", () => {
  test("records from then on, and is in the image when QEMU ends", async () => {
    expect(await verbs.add("mine")).toMatchObject({
      name: "mine",
      recording: true,
      persistent: true,
      granularity: GRANULE,
      dirtyBytes: 0,
    });
    await verbs.vm.write("drive0", 0, GRANULE);
    expect(await verbs.vm.bitmaps()).toEqual({ drive0: { mine: GRANULE } });
    await verbs.vm.quit();
    expect(await qemuImg("info", verbs.vm.images.get("drive0")!)).toMatch(/bitmaps:[^]*name: mine/);
    expect(verbs.warnings).toEqual([]);
  });

  test("disabled, transient, with a granularity", async () => {
    const wish = { disabled: true, transient: true, granularity: 512 };
    expect(await verbs.add("mine", wish)).toMatchObject({
      recording: false,
      persistent: false,
      granularity: 512,
    });
    await verbs.vm.write("drive0", 0, GRANULE);
    expect(await verbs.vm.bitmaps()).toEqual({ drive0: { mine: 0 } });
    expect(await verbs.add("coarse", { granularity: 2 ** 31 })).toMatchObject({ granularity: 2 ** 31 });
    await verbs.vm.quit();
    expect(await qemuImg("info", verbs.vm.images.get("drive0")!)).not.toContain("name: mine");
  });

  test("to a raw image, which keeps none: said so", async () => {
    const disk = "dev-drive2";
    expect(await verbs.add("mine", { disk })).toMatchObject({ recording: true, persistent: false });
    expect(verbs.warnings).toEqual([expect.stringMatching(/dev-drive2 .*raw.*gone when QEMU ends/)]);
    await verbs.add("brief", { disk, transient: true });
    expect(verbs.warnings).toHaveLength(1);
  });

  test.each<[string, string, Partial<NewBitmap>, object]>([
    ["a name that is taken", "there", {}, { kind: "locked", code: "E_BITMAP_EXISTS" }],
    ["no such disk", "x", { disk: "sda" }, { kind: "notFound", code: "E_DISK_UNKNOWN" }],
    ["no name", "", {}, { kind: "usage", code: "E_BITMAP_NAME" }],
    ["a name that is too long", "ü".repeat(512), {}, { kind: "usage", code: "E_BITMAP_NAME" }],
    ["a generation's name", OURS, {}, { kind: "usage", code: "E_BITMAP_NAME" }],
    ["no power of 2", "x", { granularity: 65535 }, { kind: "usage", code: "E_GRANULARITY" }],
    ["too fine", "x", { granularity: 256 }, { kind: "usage", code: "E_GRANULARITY" }],
    ["too coarse", "x", { granularity: 2 ** 32 }, { kind: "usage", code: "E_GRANULARITY" }],
    ["of nothing", "x", { granularity: 0 }, { kind: "usage", code: "E_GRANULARITY" }],
  ])("refuses %s", async (_, name, more, error) => {
    await verbs.addByHand("there");
    const before = await verbs.vm.picture();
    expect(await failure(verbs.add(name, more))).toMatchObject(error);
    expect(await verbs.vm.picture()).toEqual(before);
  });

  test("is not made on the filter of a dead run: that is cleared first", async () => {
    const before = { ...(await verbs.vm.picture()), files: [] };
    await verbs.vm.leaveRun(TOKEN, "drive0");
    await verbs.add("mine");
    expect(verbs.warnings).toEqual([expect.stringMatching(/^Cleared .*job bk-0123456789ab-job-0/)]);
    expect(await bitmapsOfDrive0()).toEqual(["mine"]);
    await verbs.remove("mine");
    expect(await verbs.vm.picture()).toEqual(before);
  });
});

describe("remove", () => {
  test("one of others", async () => {
    await verbs.addByHand("mine");
    await verbs.addByHand("other");
    await verbs.remove("mine");
    expect(await bitmapsOfDrive0()).toEqual(["other"]);
  });

  test("that of a generation only by force, and no other", async () => {
    for (const name of [OURS, THEIRS, "mine"]) await verbs.addByHand(name);
    const refused = await failure(verbs.remove(OURS));
    expect(refused).toMatchObject({ kind: "usage", code: "E_BITMAP_OF_GENERATION" });
    expect((refused as Error).message).toContain("the next backup there becomes a rescan");
    expect((refused as Error).message).toContain(`generation ${GENERATION} of repository ${REPOSITORY}`);
    expect(await bitmapsOfDrive0()).toHaveLength(3);
    await verbs.remove(OURS, true);
    expect(await bitmapsOfDrive0()).toEqual([THEIRS, "mine"]);
  });

  test("that of a generation without force when QEMU lost it", async () => {
    await verbs.lose(OURS);
    await verbs.remove(OURS);
    expect(await bitmapsOfDrive0()).toEqual([]);
  });

  test("one in use is refused", async () => {
    await verbs.addByHand("mine", { disabled: true });
    await verbs.vm.exportByHand("drive0", { bitmaps: ["mine"] });
    for (const force of [false, true]) {
      const refused = await failure(verbs.remove("mine", force));
      expect(refused).toMatchObject({ kind: "locked", code: "E_BITMAP_BUSY" });
      expect((refused as Error).message).toContain("Bitmap mine of disk dev-drive0");
    }
  });

  test("one that is not there is refused, and those there are named", async () => {
    await verbs.addByHand("mine");
    await verbs.addByHand("another");
    const missing = await failure(verbs.remove("nine"));
    expect(missing).toMatchObject({ kind: "notFound", code: "E_BITMAP_UNKNOWN" });
    expect((missing as Error).message).toBe('Disk dev-drive0 has no bitmap "nine"; it has another, mine');
    const none = await failure(verbs.remove("mine", false, "dev-drive1"));
    expect((none as Error).message).toBe('Disk dev-drive1 has no bitmap "mine"; it has none');
    const unknown = await failure(verbs.remove("mine", false, "sda"));
    expect(unknown).toMatchObject({ kind: "notFound", code: "E_DISK_UNKNOWN" });
    expect((unknown as Error).message).toContain("it has dev-drive0, dev-drive1, dev-drive2");
  });

  test("one of a run is refused: it goes with the run", async () => {
    await verbs.addByHand(`bk-${TOKEN}-tmp`);
    const refused = await failure(verbs.remove(`bk-${TOKEN}-tmp`, true));
    expect(refused).toMatchObject({ kind: "usage", code: "E_BITMAP_OF_RUN" });
    expect(await bitmapsOfDrive0()).toHaveLength(1);
  });
});

test("while a run of ours is at work nothing is changed", async () => {
  const { vm } = verbs;
  await verbs.addByHand("mine");
  await vm.leaveRun(TOKEN, "drive0");
  await RunFile.create(vm.scratch, TOKEN, vm.qmp);
  const before = await vm.picture();
  for (const work of [() => verbs.add("x"), () => verbs.remove("mine"), () => verbs.ranges("mine")]) {
    expect(await failure(work())).toMatchObject({
      kind: "locked",
      code: "E_VM_BUSY",
      context: { pid: process.pid },
    });
  }
  expect(await vm.picture()).toEqual(before);
});
