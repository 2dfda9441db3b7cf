import { describe, expect, test } from "vitest";
import {
  chooseParent,
  disabledBitmaps,
  halfThreads,
  staleBitmaps,
  unlistedBitmaps,
  type BitmapWay,
  type KnownGeneration,
} from "../../../src/qemu/bitmaps.ts";
import type { Vm, VmBitmap, VmDisk, VmNode } from "../../../src/qemu/inventory.ts";
import { generationBitmap } from "../../../src/qemu/names.ts";

const MiB = 1024 ** 2;
const OURS = "11111111-2222-4333-8444-555555555555";
const THEIRS = "99999999-2222-4333-8444-555555555555";
const G1 = "01990000-0000-7000-8000-000000000001";
const G2 = "01990000-0000-7000-8000-000000000002";
const G3 = "01990000-0000-7000-8000-000000000003";

function bitmap(
  generation: string,
  more: Partial<VmBitmap> & { disk?: string; repository?: string } = {},
): VmBitmap {
  const { disk = "vda", repository = OURS, ...rest } = more;
  return {
    name: generationBitmap(repository, generation, disk),
    recording: true,
    persistent: true,
    busy: false,
    inconsistent: false,
    granularity: 65536,
    dirtyBytes: 0,
    ...rest,
  };
}

const INCONSISTENT = { inconsistent: true, recording: false };
const DISABLED = { recording: false };

function disk(name: string, bitmaps: readonly VmBitmap[], more: Partial<VmDisk> = {}): VmDisk {
  return {
    name,
    qdev: name,
    node: `node-${name}`,
    driver: "qcow2",
    size: 10 * MiB,
    bitmaps,
    readOnly: false,
    canPersist: true,
    ioStatus: "ok",
    ...more,
  };
}

function vmOf(disks: readonly VmDisk[], others: readonly VmNode[] = []): Pick<Vm, "disks" | "nodes"> {
  const own = disks.map(({ node, driver, bitmaps }) => ({ name: node, driver, filename: "", bitmaps }));
  return { disks, nodes: [...own, ...others] };
}

function known(
  generation: string,
  sizes: Readonly<Record<string, number>> = { vda: 10 * MiB },
): KnownGeneration {
  const disks = new Map(Object.entries(sizes).map(([name, size]) => [name, { size }]));
  return { generation, disks };
}

const BELOW: VmNode = { name: "base", driver: "qcow2", filename: "", bitmaps: [bitmap(G1)] };

/** What happened since G1 (and G2, where it is listed); what is found; what comes of it. */
const LIFE: readonly {
  readonly event: string;
  readonly found: readonly VmBitmap[];
  readonly disk?: Partial<VmDisk>;
  readonly others?: readonly VmNode[];
  readonly listed?: readonly string[];
  readonly parent?: string;
  readonly incremental: boolean;
  readonly reason?: RegExp;
}[] = [
  {
    event: "nothing",
    found: [bitmap(G1)],
    incremental: true,
    reason: new RegExp(`bitmap since generation ${G1}`),
  },
  { event: "a clean stop and start", found: [bitmap(G1)], incremental: true },
  {
    event: "SIGKILL, with the bitmap loaded",
    found: [bitmap(G1, INCONSISTENT)],
    incremental: false,
    reason: /without storing/,
  },
  {
    event: "SIGKILL, with the bitmap of that session",
    found: [],
    incremental: false,
    reason: /has no bitmap.*ended without/,
  },
  {
    event: "a restart, on a raw disk",
    found: [],
    disk: { driver: "raw", canPersist: false },
    incremental: false,
    reason: /\(raw\) keeps none/,
  },
  {
    event: "nothing, on a raw disk",
    found: [bitmap(G1, { persistent: false })],
    disk: { driver: "raw", canPersist: false },
    incremental: true,
  },
  {
    event: "a restart, on qcow2 of version 2",
    found: [],
    disk: { canPersist: false },
    incremental: false,
    reason: /keeps none/,
  },
  {
    event: "an external snapshot",
    found: [],
    others: [BELOW],
    incremental: false,
    reason: /snapshot was made over it/,
  },
  { event: "a commit back after a snapshot", found: [bitmap(G1, { dirtyBytes: 131072 })], incremental: true },
  {
    event: "a commit back after a snapshot that G2 was made of",
    found: [bitmap(G1)],
    listed: [G2, G1],
    parent: G1,
    incremental: true,
  },
  { event: "an internal snapshot", found: [bitmap(G1)], incremental: true },
  { event: "the bitmap removed, to revert", found: [], incremental: false, reason: /bitmap removed/ },
  {
    event: "it grew",
    found: [bitmap(G1)],
    disk: { size: 12 * MiB },
    incremental: false,
    reason: /size changed from 10.0 MiB to 12.0 MiB/,
  },
  {
    event: "it shrank",
    found: [bitmap(G1)],
    disk: { size: 8 * MiB },
    incremental: false,
    reason: /size changed/,
  },
  {
    event: "replaced by an older copy of itself",
    found: [bitmap(G1)],
    listed: [G2, G1],
    parent: G1,
    incremental: true,
  },
  {
    event: "replaced by a copy older than what is listed",
    found: [bitmap(G1)],
    listed: [G3, G2],
    parent: G3,
    incremental: false,
    reason: /has no bitmap/,
  },
  {
    event: "qemu-img convert, or mirrored to another image",
    found: [],
    incremental: false,
    reason: /image was replaced/,
  },
  {
    event: "a crash between the commit and the old bitmap's removal",
    found: [bitmap(G1), bitmap(G2)],
    listed: [G2, G1],
    parent: G2,
    incremental: true,
  },
  {
    event: "a crash before the commit",
    found: [bitmap(G1), bitmap(G2)],
    listed: [G1],
    parent: G1,
    incremental: true,
  },
  {
    event: "disabled by another hand",
    found: [bitmap(G1, DISABLED)],
    incremental: false,
    reason: /disabled/,
  },
  {
    event: "somebody exports the bitmap",
    found: [bitmap(G1, { busy: true })],
    incremental: false,
    reason: /in use/,
  },
  {
    event: "another repository's backup",
    found: [bitmap(G1, { repository: THEIRS })],
    incremental: false,
    reason: /has no bitmap/,
  },
  {
    event: "two repositories' backups",
    found: [bitmap(G2, { repository: THEIRS }), bitmap(G1)],
    listed: [G2, G1],
    parent: G1,
    incremental: true,
  },
  {
    event: "disks changed places",
    found: [bitmap(G1, { disk: "vdb" })],
    incremental: false,
    reason: /image was that of disk vdb/,
  },
];

describe("the life of a bitmap", () => {
  test.each(LIFE)("$event: incremental $incremental", (row) => {
    const listed = (row.listed ?? [G1]).map((generation) => known(generation));
    const choice = chooseParent(vmOf([disk("vda", row.found, row.disk)], row.others), OURS, listed);
    expect(choice.parent).toBe(row.parent ?? G1);
    const way = choice.ways.get("vda")!;
    expect(way.bitmap).toBe(row.incremental ? generationBitmap(OURS, choice.parent!, "vda") : undefined);
    expect(way.reason).toMatch(row.reason ?? /bitmap since/);
  });
});

describe("several disks", () => {
  function waysOf(disks: readonly VmDisk[], listed: readonly KnownGeneration[]): Record<string, BitmapWay> {
    const { ways } = chooseParent(vmOf(disks), OURS, listed);
    return Object.fromEntries(ways);
  }
  const both = known(G1, { vda: 10 * MiB, vdb: 10 * MiB });

  test("stand on one generation, each in its own way", () => {
    const disks = [disk("vda", [bitmap(G1)]), disk("vdb", [bitmap(G1, { disk: "vdb", ...INCONSISTENT })])];
    const ways = waysOf(disks, [both]);
    expect(ways["vda"]!.bitmap).toBeDefined();
    expect(ways["vdb"]).toMatchObject({ bitmap: undefined, reason: /without storing/ });
  });

  test("a checkpoint's bitmap is nobody's: it bears one name on all disks, so it may be another's", () => {
    const name = `bk-${OURS}-${G1}`;
    const listed = { generation: G1, disks: new Map([["vda", { size: 10 * MiB, bitmap: name }]]) };
    const ways = waysOf([disk("vda", [bitmap(G1, { name })])], [listed]);
    expect(ways["vda"]).toEqual({
      bitmap: undefined,
      reason: `generation ${G1} has a checkpoint of libvirt`,
    });
  });

  test("a disk that was added is not in the generation", () => {
    const ways = waysOf([disk("vda", [bitmap(G1)]), disk("vdb", [])], [known(G1)]);
    expect(ways["vda"]!.bitmap).toBeDefined();
    expect(ways["vdb"]!.reason).toBe(`disk vdb is not in generation ${G1}`);
  });

  test("a disk that was taken out leaves the others alone", () => {
    expect(waysOf([disk("vda", [bitmap(G1)])], [both])).toEqual({
      vda: { bitmap: generationBitmap(OURS, G1, "vda"), reason: expect.any(String) as string },
    });
  });

  test("one that only has the older generation's bitmap is compared with the newer", () => {
    const disks = [disk("vda", [bitmap(G2)]), disk("vdb", [bitmap(G1, { disk: "vdb" })])];
    const { parent, ways } = chooseParent(vmOf(disks), OURS, [{ ...both, generation: G2 }, both]);
    expect(parent).toBe(G2);
    expect(ways.get("vdb")!.bitmap).toBeUndefined();
  });

  test("without a generation, nothing to stand on", () => {
    expect(chooseParent(vmOf([disk("vda", [bitmap(G1)])]), OURS, [])).toEqual({
      parent: undefined,
      ways: new Map([["vda", { bitmap: undefined, reason: "there is no generation to stand on" }]]),
    });
  });
});

describe("after a commit of G3", () => {
  const foreign = [
    bitmap(G1, { repository: THEIRS }),
    { ...bitmap(G1), name: "libvirt-1" },
    { ...bitmap(G1), name: "bk-tmp" },
  ];

  test("every other one of ours goes, those that say nothing any more too", () => {
    const found = [
      bitmap(G1),
      bitmap(G2, INCONSISTENT),
      bitmap(G3),
      bitmap(G2, { disk: "old-name" }),
      ...foreign,
    ];
    const stale = staleBitmaps([disk("vda", found)], OURS, G3);
    expect(stale.map(({ node, name }) => [node, name])).toEqual([
      ["node-vda", generationBitmap(OURS, G1, "vda")],
      ["node-vda", generationBitmap(OURS, G2, "vda")],
      ["node-vda", generationBitmap(OURS, G2, "old-name")],
    ]);
  });

  test("those in use stay, for they cannot be removed", () => {
    expect(staleBitmaps([disk("vda", [bitmap(G1, { busy: true })])], OURS, G3)).toEqual([]);
  });

  test("what names no listed generation is told apart", () => {
    const disks = [disk("vda", [bitmap(G1), bitmap(G2), ...foreign])];
    expect(unlistedBitmaps(disks, OURS, [known(G1)])).toEqual([
      { disk: "vda", node: "node-vda", name: generationBitmap(OURS, G2, "vda"), generation: G2 },
    ]);
  });
});

describe("the form that disables the old bitmap, left half-way", () => {
  const half = (found: readonly VmBitmap[], listed: readonly string[] = [G2, G1]): unknown =>
    halfThreads(
      [disk("vda", found)],
      OURS,
      listed.map((generation) => known(generation)),
    );

  test("is the listed one disabled and an unlisted one recording", () => {
    expect(half([bitmap(G2, DISABLED), bitmap(G3)])).toEqual([
      {
        disk: "vda",
        node: "node-vda",
        parent: generationBitmap(OURS, G2, "vda"),
        successors: [generationBitmap(OURS, G3, "vda")],
      },
    ]);
  });

  test.each([
    ["both record: the form that keeps the old one going", [bitmap(G2), bitmap(G3)]],
    ["nothing records", [bitmap(G2, DISABLED)]],
    ["the successor's generation is listed", [bitmap(G1, DISABLED), bitmap(G2)]],
    ["the successor lost what it recorded", [bitmap(G2, DISABLED), bitmap(G3, INCONSISTENT)]],
    ["the old one lost what it recorded", [bitmap(G2, INCONSISTENT), bitmap(G3)]],
    ["the successor is another repository's", [bitmap(G2, DISABLED), bitmap(G3, { repository: THEIRS })]],
    ["the successor was another disk's", [bitmap(G2, DISABLED), bitmap(G3, { disk: "vdb" })]],
  ])("is not: %s", (_, found) => expect(half(found)).toEqual([]));

  test("a new bitmap never begins beside a disabled one", () => {
    const found = [
      bitmap(G1, DISABLED),
      bitmap(G2),
      bitmap(G3, INCONSISTENT),
      bitmap(G1, { ...DISABLED, repository: THEIRS }),
    ];
    expect(disabledBitmaps(disk("vda", found), OURS).map(({ name }) => name)).toEqual([
      generationBitmap(OURS, G1, "vda"),
    ]);
  });
});
