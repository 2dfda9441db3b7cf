import { expect, test } from "vitest";
import { MiB } from "../../../src/bytes/size.ts";
import type { Checkpoint } from "../../../src/libvirt/checkpoints.ts";
import type { DomainDisk } from "../../../src/libvirt/domain.ts";
import { generationCheckpoint } from "../../../src/libvirt/names.ts";
import { chooseCheckpoint, staleCheckpoints } from "../../../src/libvirt/parent.ts";
import type { KnownGeneration } from "../../../src/qemu/bitmaps.ts";

const REPOSITORY = "11111111-2222-4333-8444-555555555555";
const id = (n: number): string => `01930000-0000-7000-8000-00000000000${n}`;
const name = (n: number): string => generationCheckpoint(REPOSITORY, id(n));

function disk(target: string, more: Partial<DomainDisk> = {}): DomainDisk {
  const images = [`/images/${target}.qcow2`];
  return { name: target, size: 8 * MiB, format: "qcow2", readOnly: false, iothread: false, images, ...more };
}

function generation(n: number, disks: readonly string[], checkpoint = n): KnownGeneration {
  const disk = { size: 8 * MiB, bitmap: name(checkpoint) };
  return { generation: id(n), disks: new Map(disks.map((one) => [one, disk])) };
}

/** @param disks with the bytes that changed; undefined: broken. */
function checkpoint(n: number, disks: Readonly<Record<string, number | undefined>>): Checkpoint {
  return {
    name: name(n),
    repository: REPOSITORY,
    generation: id(n),
    disks: new Map(
      Object.entries(disks).map(([one, dirtyBytes]) => [one, { dirtyBytes, image: `/images/${one}.qcow2` }]),
    ),
  };
}

test("the newest generation of which a disk has a checkpoint is the parent; each disk goes its own way", () => {
  const disks = [disk("vda"), disk("vdb"), disk("vdc")];
  const known = [generation(3, ["vda", "vdb"]), generation(2, ["vda", "vdb"]), generation(1, ["vda"])];
  const choice = chooseCheckpoint(
    disks,
    [checkpoint(2, { vda: 0, vdb: undefined }), checkpoint(1, { vda: 5 })],
    known,
  );
  expect(choice.parent).toBe(id(2));
  expect([...choice.ways].map(([one, { bitmap, reason }]) => [one, bitmap, reason])).toEqual([
    ["vda", name(2), `changes since generation ${id(2)}, by its checkpoint`],
    ["vdb", undefined, "the bitmap of its checkpoint is missing or broken: QEMU ended without storing it"],
    ["vdc", undefined, `disk vdc is not in generation ${id(2)}`],
  ]);
});

test("without any checkpoint the newest is the parent, and without a generation there is none", () => {
  expect(chooseCheckpoint([disk("vda")], [], [generation(2, ["vda"]), generation(1, ["vda"])]).parent).toBe(
    id(2),
  );
  expect(chooseCheckpoint([disk("vda")], [checkpoint(1, { vda: 0 })], []).parent).toBeUndefined();
});

test("a repaired generation goes on from the checkpoint of the one that it repairs", () => {
  const choice = chooseCheckpoint([disk("vda")], [checkpoint(1, { vda: 0 })], [generation(2, ["vda"], 1)]);
  expect(choice).toMatchObject({ parent: id(2) });
  expect(choice.ways.get("vda")!.bitmap).toBe(name(1));
});

test.each<[string, Partial<DomainDisk>, RegExp]>([
  ["of another size", { size: 9 * MiB }, /^its size changed from 8.0 MiB to 9.0 MiB/],
  ["raw now", { format: "raw" }, /^an image of this kind \(raw\) has no checkpoints/],
  ["another image", { images: ["/images/vdb.qcow2"] }, /^its image was \/images\/vda.qcow2 in/],
])("no checkpoint is believed of a disk that is %s", (_, more, reason) => {
  const choice = chooseCheckpoint([disk("vda", more)], [checkpoint(1, { vda: 0 })], [generation(1, ["vda"])]);
  expect(choice.ways.get("vda")).toEqual({
    bitmap: undefined,
    reason: expect.stringMatching(reason) as string,
  });
});

test("an image under a snapshot's overlay is still the one that it was", () => {
  const images = ["/images/vda.snap1", "/images/vda.qcow2"];
  const choice = chooseCheckpoint(
    [disk("vda", { images })],
    [checkpoint(1, { vda: 0 })],
    [generation(1, ["vda"])],
  );
  expect(choice.ways.get("vda")!.bitmap).toBe(name(1));
});

test("stale is what tracks none of the domain's other disks", () => {
  const all = [checkpoint(1, { vda: 0 }), checkpoint(2, { vda: 0, vdb: 0 }), checkpoint(3, { vda: 0 })];
  expect(staleCheckpoints(all, id(3), [])).toEqual([name(1), name(2)]);
  expect(staleCheckpoints(all, id(3), ["vdb"])).toEqual([name(1)]);
});
