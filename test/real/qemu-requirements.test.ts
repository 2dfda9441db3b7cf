import { describe, expect, test } from "vitest";
import { BackedUpVm, commit, openRun } from "../support/backed-up-vm.ts";
import { QEMU_10 } from "../support/qemu-vm.ts";
import { failure } from "../support/outcomes.ts";

const MiB = 1024 * 1024;
const DISKS = [
  { node: "drive0", size: 16 * MiB },
  { node: "drive1", size: 16 * MiB },
];

describe("what is refused before anything is done", () => {
  test("a VM with iothreads on a QEMU that would abort", async () => {
    const tested = await BackedUpVm.start(DISKS, ["-object", "iothread,id=io0"]);
    const before = await tested.picture();
    const { major } = (await tested.survey()).version;
    if (major >= 9) {
      await commit(await openRun(tested, 1)); // it does not, any more
      return;
    }
    expect(await failure(openRun(tested, 1))).toMatchObject({
      kind: "usage",
      code: "E_IOTHREAD",
      message: expect.stringMatching(/may abort.*9\.0/) as string,
    });
    expect(await tested.picture()).toEqual(before);
  });

  test("filter fleecing on a QEMU that would give newer data", async () => {
    const tested = await BackedUpVm.start(DISKS);
    if ((await tested.survey()).version.major >= 10) return; // all of it is tested with one
    const before = await tested.picture();
    expect(await failure(openRun(tested, 1, [], { fleecing: "filter" }))).toMatchObject({
      kind: "usage",
      code: "E_FLEECING",
      message: expect.stringMatching(/7\.2.*10\.0.*--fleecing classic/) as string,
    });
    expect(await tested.picture()).toEqual(before);
  });

  test("a disk that is not there; those that are, are named", async () => {
    const tested = await BackedUpVm.start(DISKS);
    expect(await failure(openRun(tested, 1, [], { disks: ["dev-drive0", "vdz"] }))).toMatchObject({
      kind: "notFound",
      code: "E_DISK_UNKNOWN",
      message: "The VM has no disk vdz; it has dev-drive0, dev-drive1",
    });
  });

  test("a VM without disks", async () => {
    const tested = await BackedUpVm.start([]);
    expect(await failure(openRun(tested, 1))).toMatchObject({ kind: "notFound", code: "E_NO_DISKS" });
  });

  test("a scratch folder without room", async () => {
    const tested = await BackedUpVm.start(DISKS);
    const before = await tested.picture();
    const small = openRun(tested, 1, [], { scratchSizeMax: 2 * MiB });
    expect(await failure(small)).toMatchObject({ code: "E_SCRATCH_SIZE" });
    expect(await tested.picture()).toEqual(before);
  });
});

test("some disks only: the others are not touched", async () => {
  const tested = await BackedUpVm.start(DISKS);
  await commit(await openRun(tested, 1, [], { disks: ["dev-drive1"] }));
  expect(await tested.bitmaps()).toMatchObject({ drive0: [], drive1: [expect.any(String)] });
});

test("drives of every kind have a name, and can be fleeced both ways", async () => {
  const tested = await BackedUpVm.start(
    [],
    [
      ...["-machine", "pc", "-device", "virtio-scsi-pci,id=scsi"],
      ...[
        "-blockdev",
        "driver=null-co,node-name=n0,size=16777216,read-zeroes=on",
        "-device",
        "scsi-hd,id=sd0,drive=n0",
      ],
      ...[
        "-blockdev",
        "driver=null-co,node-name=n1,size=16777216,read-zeroes=on",
        "-device",
        "virtio-blk-pci,drive=n1",
      ],
      ...["-drive", "if=virtio,driver=null-co,size=16777216,read-zeroes=on"],
      ...["-drive", "if=ide,driver=null-co,size=16777216,read-zeroes=on"],
      ...[
        "-blockdev",
        "driver=null-co,node-name=ro,size=16777216,read-only=on",
        "-device",
        "virtio-blk-pci,id=ro0,drive=ro",
      ],
      ...["-device", "scsi-cd,id=cd0"],
    ],
    QEMU_10,
  );
  const names = ["ide0-hd0", "n1", "ro0", "sd0", "virtio0"];
  expect((await tested.survey()).disks.map(({ name }) => name).sort()).toEqual(names);
  for (const [number, fleecing] of [
    [1, "classic"],
    [2, "filter"],
  ] as const) {
    const run = await openRun(tested, number, [], { fleecing });
    expect(run.pit.disks.map(({ name }) => name).sort()).toEqual(names.filter((name) => name !== "ro0"));
    await commit(run);
    expect(tested.warnings).toEqual([]);
  }
  const readOnly = await openRun(tested, 3, [], { disks: ["ro0"] });
  await commit(readOnly);
});
