import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { frozenCopy, needsRecovery } from "../support/guest/disk.ts";
import { startLibvirtGuest, type LibvirtGuest } from "../support/guest/libvirt-guest.ts";
import { Libvirt } from "../support/libvirt.ts";
import { TestDomain } from "../support/libvirt-domain.ts";
import { mountsWork, mountTmpfs } from "../support/mounts.ts";
import { generationOf, type VmGenerationJson } from "../support/vm-runs.ts";

/** A guest that is frozen and thawed through libvirt: a real Linux that writes all the time. */
let libvirt: Libvirt;
let guest: LibvirtGuest;
let domain: TestDomain;

beforeAll(async () => {
  libvirt = await Libvirt.start();
  guest = await startLibvirtGuest(libvirt);
  domain = await TestDomain.of(libvirt, guest.name, guest.folder);
});
afterAll(async () => {
  guest.console.close();
  await libvirt.stop();
});

/** It writes on. */
async function expectThawed(): Promise<void> {
  const said = await domain.virsh("qemu-agent-command", guest.name, '{"execute":"guest-fsfreeze-status"}');
  expect(said).toContain('"thawed"');
  const last = [...guest.console.log.matchAll(/W (\d+)/g)].at(-1)![1];
  await guest.console.waitFor(new RegExp(`W ${Number(last) + 2}\\b`));
}

async function restored({ generation }: VmGenerationJson): Promise<string> {
  const file = join(guest.folder, `${generation}.raw`);
  const { code, stderr } = await domain.repository.run("restore", generation, "--to", file);
  expect([code, stderr]).toEqual([0, expect.anything()]);
  return file;
}

test("it is frozen for the instant alone, and what is restored is exactly that instant", async () => {
  let truth = "";
  const [run] = await Promise.all([
    domain.backUp("--freeze", "require"),
    domain.meanwhile("after backup-begin", async () => {
      truth = await frozenCopy({ disks: [guest.disk], folder: guest.folder }, 0); // it stands frozen still
    }),
  ]);
  const generation = generationOf(run);
  expect(generation.consistency).toBe("filesystem");
  expect(generation.guest.frozenMs).toBeGreaterThanOrEqual(generation.guest.takeMs);
  await expectThawed();
  expect(await domain.differences(generation, new Map([["vda", truth]]))).toEqual([]);
  expect(await needsRecovery(await restored(generation))).toBe(false);
  const crash = await domain.generation("--freeze", "off");
  expect(crash.consistency).toBe("crash");
  expect(crash.kind).toBe("incremental");
  expect(await needsRecovery(await restored(crash))).toBe(true);
  // libvirt waits for agents as it did before
  expect((await domain.calls()).filter((call) => call === "guest-agent-timeout")).toHaveLength(2);
});

test("killed while it is frozen: the guard thaws it, and the next run is complete", async () => {
  const { signal } = await domain.killedAt("before backup-begin", { guarded: true });
  expect(signal).toBe("SIGKILL");
  await expectThawed();
  expect(await domain.leftovers()).toEqual([]);
});

test("killed with its guard while it is frozen: the next run thaws it", async () => {
  await domain.killedAt("before backup-begin", { guarded: false });
  const next = await domain.backUp("--freeze", "off");
  expect(next.said[0]!.message).toMatch(/^Cleared what an earlier backup left behind: run \w+ \(a freeze\)/);
  await expectThawed();
});

const freezes = async (): Promise<number> =>
  (await domain.calls()).filter((call) => call === "domfsfreeze").length;

test("an agent that hangs is not told to freeze: it would obey when nobody is there to thaw", async () => {
  const before = await freezes();
  await guest.console.run("agent hang");
  const run = await domain.backUp("--freeze-budget", "1");
  expect(generationOf(run).consistency).toBe("crash");
  expect(run.said[0]!.message).toMatch(/crash consistent: .*it took more than 1000 ms/);
  await guest.console.run("agent resume");
  await expectThawed();
  expect(await freezes()).toBe(before);
});

test("an agent that hangs in the middle of it obeys late: it is thawed all the same, before anything is read", async () => {
  const [run] = await Promise.all([
    domain.backUp("--freeze-budget", "1"),
    domain
      .meanwhile("before domfsfreeze", () => guest.console.run("agent hang"))
      .then(() => domain.meanwhile("before domfsthaw", () => guest.console.run("agent resume"))),
  ]);
  expect(generationOf(run).consistency).toBe("crash");
  await expectThawed();
});

test("scratch that is full stops the guest: the backup ends and lets it go on", async () => {
  const small = join(guest.folder, "small");
  expect(mountsWork(), "this test mounts a small file system").toBe(true);
  await mkdir(small);
  mountTmpfs(small, 24 * MiB);
  const overwrite = "dd if=/dev/zero of=/mnt/big bs=1M count=40 conv=notrunc,fsync";
  await guest.console.run(overwrite);
  const [run] = await Promise.all([
    domain.backUp("--freeze", "off", "--scratch", small),
    domain.meanwhile("after backup-begin", async () => {
      void guest.console.run(overwrite).catch(() => undefined);
      while (!(await domain.virsh("domstate", guest.name, "--reason")).includes("I/O error")) await delay(50);
    }),
  ]);
  expect(run.said.at(-1)).toMatchObject({ code: "E_POINT_IN_TIME_LOST" });
  expect(await domain.virsh("domstate", guest.name)).toMatch(/^running/);
  await expectThawed();
  expect((await domain.generation("--freeze", "off")).kind).toBe("incremental");
});
