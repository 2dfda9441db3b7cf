import { describe, expect, onTestFinished, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { BackedUpGuest, type BackedUpGuestOptions } from "../support/guest/backed-up-guest.ts";
import type { VmGenerationJson } from "../support/vm-runs.ts";
import { fsck, needsRecovery, sequence } from "../support/guest/disk.ts";

const DISK = 64 * MiB;

async function guestWith(options: BackedUpGuestOptions): Promise<BackedUpGuest> {
  const tested = await BackedUpGuest.start({ disks: 2, diskSize: DISK, writer: true, ...options });
  onTestFinished(() => tested.close());
  // the copy at the instant is taken while the guest stands frozen
  tested.flags = ["--freeze", "require", "--freeze-budget", "60"];
  return tested;
}

/** What a guest does between two backups, besides its writer. */
const CHANGES: readonly string[] = [
  "fill /mnt/a 3000000 one; fill /mnt2/a 1000000 two",
  "fill /mnt/b 5000000 three",
  "rm /mnt/a; sync",
  "fill /mnt2/b 4000000 four; rm /mnt2/a; sync",
  "true",
  "fill /mnt/b 2000000 five; fstrim /mnt",
  "cp /mnt/b /mnt2/c; sync",
  "rm /mnt/b /mnt2/b; sync; fstrim /mnt; fstrim /mnt2",
  "mkdir -p /mnt/d/e; for n in 1 2 3 4 5 6 7 8 9; do echo $n > /mnt/d/e/$n; done; sync",
  "rm -r /mnt/d; fill /mnt/f 1000000 six; fill /mnt2/f 1000000 seven",
];

/** Restores a generation and looks at it as a machine that boots from it would. */
async function expectRight(tested: BackedUpGuest, generation: VmGenerationJson): Promise<void> {
  const what = `generation ${generation.sequence}`;
  const { files, differ } = await tested.restore(generation);
  expect(differ, what).toEqual([]);
  for (const file of files) {
    expect(await fsck(file), what).toMatchObject({ code: 0 });
    expect(await needsRecovery(file), what).toBe(false);
  }
  // the writer puts a number on the second disk when the first has it
  const [first, second] = [await sequence(files[0]!), await sequence(files[1]!)];
  expect([second, second + 1], what).toContain(first);
}

async function expectOneBitmapADisk(tested: BackedUpGuest, { generation }: VmGenerationJson): Promise<void> {
  for (const [disk, names] of Object.entries(await tested.bitmaps()))
    expect(names, disk).toEqual([expect.stringMatching(new RegExp(`^bk-.*-${generation}-${disk}$`))]);
}

test(
  "a full and ten incrementals while the guest writes: each is one frozen instant of both disks",
  { timeout: 400_000 },
  async () => {
    const tested = await guestWith({});
    await tested.guest.console.waitFor(/^W 3\r?$/m);
    const generations = [await tested.generation()];
    expect(generations[0]).toMatchObject({ kind: "full", consistency: "filesystem", parent: null });
    await expectOneBitmapADisk(tested, generations[0]!);
    for (const change of CHANGES) {
      await tested.guest.console.run(change, 60_000);
      const [parent, generation] = [generations.at(-1)!, await tested.generation()];
      generations.push(generation);
      expect(generation, change).toMatchObject({
        kind: "incremental",
        consistency: "filesystem",
        parent: parent.generation,
        disks: [{ kind: "incremental" }, { kind: "incremental" }],
      });
      expect(generation.stats.bytesRead, change).toBeLessThan(DISK / 2); // of two disks
      await expectOneBitmapADisk(tested, generation);
      expect(await tested.leftovers(), change).toEqual([]);
    }
    await tested.writerGoesOn();
    for (const generation of generations) await expectRight(tested, generation);
    const { problems } = await tested.repository.json<{ problems: unknown[] }>("verify", "--read-data");
    expect(problems).toEqual([]);
  },
);

describe.each([
  { name: "QEMU 10 with iothreads", options: { qemu: "10", iothread: true }, flags: [] },
  { name: "filter fleecing", options: { qemu: "10" }, flags: ["--fleecing", "filter"] },
] as const)("$name", ({ options, flags }) => {
  test(
    "a full and two incrementals are each one frozen instant of both disks",
    { timeout: 200_000 },
    async () => {
      const tested = await guestWith(options);
      const generations = [await tested.generation(...flags)];
      for (const change of CHANGES.slice(0, 2)) {
        await tested.guest.console.run(change, 60_000);
        const generation = await tested.generation(...flags);
        expect(generation).toMatchObject({ kind: "incremental", consistency: "filesystem" });
        expect(generation.stats.bytesRead).toBeLessThan(DISK / 2);
        generations.push(generation);
        await expectOneBitmapADisk(tested, generation);
        expect(await tested.leftovers()).toEqual([]);
      }
      await tested.writerGoesOn();
      for (const generation of generations) await expectRight(tested, generation);
    },
  );
});
