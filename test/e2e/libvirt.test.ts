import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { KiB, MiB } from "../../src/bytes/size.ts";
import { Libvirt } from "../support/libvirt.ts";
import { TestDomain } from "../support/libvirt-domain.ts";
import { generationOf, type VmGenerationJson, type VmRun } from "../support/vm-runs.ts";

/** `backup libvirt:DOMAIN` against a real libvirt; what is restored must be what was there at the instant. */
let libvirt: Libvirt;

beforeAll(async () => {
  libvirt = await Libvirt.start();
});
afterAll(() => libvirt.stop());

const kinds = ({ disks }: VmGenerationJson): Record<string, string> =>
  Object.fromEntries(disks.map(({ name, kind }) => [name, kind]));

const reasonOf = ({ disks }: VmGenerationJson, disk: string): string =>
  disks.find(({ name }) => name === disk)!.reason;

const errorOf = ({ said }: VmRun): string | undefined => said.find(({ code }) => code !== undefined)?.code;

describe("a domain with two qcow2 disks and a raw one", () => {
  let domain: TestDomain;

  beforeAll(async () => {
    domain = await TestDomain.start(libvirt, "web", [
      { name: "vda", size: 16 * MiB },
      { name: "vdb", size: 8 * MiB },
      { name: "vdc", size: 4 * MiB, format: "raw" },
    ]);
  });

  test("is read in full once, then by what changed; each generation is its instant, and one checkpoint stays", async () => {
    await domain.virsh(
      "checkpoint-create-as",
      "web",
      "theirs",
      "--diskspec",
      "vda",
      "--diskspec",
      "vdb",
      "--diskspec",
      "vdc,checkpoint=no",
    );
    await domain.write("vda", "write -P 1 0 3M", "write -P 2 9M 64k");
    await domain.write("vdb", "write -P 3 1M 1M");
    await domain.write("vdc", "write -P 4 0 1M");
    const first = await domain.truth();
    // what is written while it is read is not in it
    const [run] = await Promise.all([
      domain.backUp(),
      domain.meanwhile("after backup-begin", async () => {
        await domain.write("vda", "write -P 5 1M 128k", "write -P 6 12M 64k");
        await domain.write("vdc", "write -P 7 0 64k");
      }),
    ]);
    const full = generationOf(run);
    expect(kinds(full)).toEqual({ vda: "full", vdb: "full", vdc: "full" });
    expect(full.source).toBe("web");
    expect(await domain.differences(full, first)).toEqual([]);

    // zeros and holes are changes like any other
    await domain.write("vda", "write -z 2M 512k", "discard 9M 64k");
    const second = await domain.truth();
    const next = await domain.generation();
    expect(kinds(next)).toEqual({ vda: "incremental", vdb: "incremental", vdc: "rescan" });
    expect(reasonOf(next, "vda")).toBe(`changes since generation ${full.generation}, by its checkpoint`);
    expect(reasonOf(next, "vdc")).toMatch(/^an image of this kind \(raw\) has no checkpoints; compared with/);
    expect(next.stats.bytesRead).toBeLessThan(3 * MiB);
    expect(await domain.differences(next, second)).toEqual([]);

    const own = (await domain.checkpoints()).filter((name) => name !== "theirs");
    expect(own).toEqual([expect.stringContaining(next.generation)]);
    expect(await domain.checkpoints()).toContain("theirs");
    expect(await domain.leftovers()).toEqual([]);
  });

  test("a new disk is a full, and a resized one is read as a whole, inside an otherwise incremental run", async () => {
    await domain.attach({ name: "vdd", size: 4 * MiB });
    await domain.write("vdd", "write -P 8 0 1M");
    await domain.virsh("blockresize", "web", "vdb", `${10 * MiB}B`);
    await domain.write("vdb", "write -P 9 9M 64k");
    await domain.write("vda", "write -P 10 4M 64k");
    const truth = await domain.truth();
    const generation = await domain.generation();
    expect(kinds(generation)).toEqual({ vda: "incremental", vdb: "rescan", vdc: "rescan", vdd: "full" });
    expect(reasonOf(generation, "vdb")).toMatch(/^its size changed from 8.0 MiB to 10.0 MiB/);
    expect(await domain.differences(generation, truth)).toEqual([]);
  });

  test("goes to two repositories, which leave each other's checkpoints alone", async () => {
    const other = domain.newRepository("other");
    await other.run("init");
    const before = await domain.checkpoints();
    const theirs = generationOf(await domain.backUpTo(other, ["--disk", "vda"]));
    expect(await domain.checkpoints()).toEqual(expect.arrayContaining(before));
    await domain.write("vda", "write -P 11 5M 64k");
    const truth = await domain.truth();
    expect(kinds(await domain.generation())).toMatchObject({ vda: "incremental" });
    const again = generationOf(await domain.backUpTo(other, ["--disk", "vda"]));
    expect(again.parent).toBe(theirs.generation);
    expect(kinds(again)).toEqual({ vda: "incremental" });
    expect(await domain.differences(again, truth, other)).toEqual([]);
  });
});

describe("a run that ends before its time", () => {
  let domain: TestDomain;
  let value = 0;

  beforeAll(async () => {
    domain = await TestDomain.start(libvirt, "db", [
      { name: "vda", size: 8 * MiB },
      { name: "vdb", size: 8 * MiB },
    ]);
    await domain.write("vda", "write -P 1 0 1M");
    await domain.generation();
  });

  /** Another 64 KiB each time, so that a change that a run missed is missing for good. */
  const change = async (): Promise<void> => {
    value += 1;
    await domain.write("vda", `write -P ${value + 100} ${value * 256 * KiB} 64k`);
  };

  /** The next run has everything that changed since the last generation. */
  const expectComplete = async (kind = "incremental"): Promise<VmGenerationJson> => {
    await change();
    const truth = await domain.truth();
    const generation = await domain.generation();
    expect(kinds(generation)).toEqual({ vda: kind, vdb: kind });
    expect(await domain.differences(generation, truth)).toEqual([]);
    expect(await domain.leftovers()).toEqual([]);
    expect(await domain.checkpoints()).toHaveLength(1);
    return generation;
  };

  test.each([
    ["before backup-begin", true], // libvirt begins when the run is dead
    ["after backup-begin", true],
    ["after backup-begin", false],
    ["before domjobabort", false], // committed, and its parent's checkpoint still there
  ])("killed %s (guard lives: %s): the next one misses nothing", async (when, guarded) => {
    await change();
    const { signal } = await domain.killedAt(when, { guarded });
    expect(signal).toBe("SIGKILL");
    if (guarded) expect(await domain.leftovers()).toEqual([]);
    await expectComplete();
  });

  test("its job ended by another hand: nothing is committed, its checkpoint goes, its parent's stays", async () => {
    await change();
    const before = await domain.checkpoints();
    // when all is read, before it is committed
    const steps = ["after backup-begin", "after domstats", "before backup-dumpxml"];
    const virsh = `/usr/bin/virsh -c '${libvirt.uri}'`;
    const gone = `while ${virsh} backup-dumpxml db >/dev/null 2>&1; do sleep 0.02; done`;
    await domain.atLast(steps, `${virsh} domjobabort db; ${gone}`);
    const run = await domain.backUp();
    expect([run.code, errorOf(run)]).toEqual([14, "E_POINT_IN_TIME_LOST"]);
    expect(await domain.checkpoints()).toEqual(before);
    await expectComplete();
  });

  test("QEMU died: its bitmap is lost, and all is read", async () => {
    await change();
    await domain.crash();
    const off = await domain.backUp();
    expect([off.code, errorOf(off)]).toEqual([14, "E_DOMAIN_OFF"]);
    await domain.start();
    const generation = await expectComplete("rescan");
    expect(reasonOf(generation, "vda")).toMatch(/^the bitmap of its checkpoint is missing or broken/);
  });

  test("a checkpoint that libvirt forgot: all is read", async () => {
    const [checkpoint] = await domain.checkpoints();
    await domain.virsh("checkpoint-delete", "db", checkpoint!, "--metadata");
    expect(reasonOf(await expectComplete("rescan"), "vda")).toMatch(
      /^libvirt has no checkpoint of generation/,
    );
  });

  test("disks that changed places, whose bitmaps bear the same name: all is read", async () => {
    await domain.virsh("destroy", "db");
    const [vda, vdb] = ["vda", "vdb"].map((name) => domain.images.get(name)!);
    domain.images.set("vda", vdb!).set("vdb", vda!);
    await domain.define([{ name: "vda" }, { name: "vdb" }]);
    await domain.start();
    expect(reasonOf(await expectComplete("rescan"), "vda")).toMatch(
      /^its image was .*vda.qcow2 in generation/,
    );
    await expectComplete();
  });
});

describe("refused", () => {
  let domain: TestDomain;

  beforeAll(async () => {
    domain = await TestDomain.start(libvirt, "mail", [{ name: "vda", size: 4 * MiB }]);
    await domain.virsh("resume", "mail"); // a guest that is paused has no agent, whoever says so
  });

  test("while somebody else's backup runs, which is left alone", async () => {
    await domain.othersBackup();
    const run = await domain.backUp();
    expect([run.code, errorOf(run)]).toEqual([11, "E_DOMAIN_BUSY"]);
    expect(await domain.virsh("domjobinfo", "mail")).toMatch(/Backup/);
    await domain.virsh("domjobabort", "mail");
  });

  test("doctor tells what a dead run left, and clears it with --fix", async () => {
    const look = async (...flags: string[]): Promise<Record<string, string>> => {
      const where = ["--connect", libvirt.uri, "--scratch", domain.scratch, "--json"];
      const { stdout } = await domain.repository.run("doctor", "libvirt:mail", ...where, ...flags);
      const { findings } = JSON.parse(stdout) as { findings: { check: string; status: string }[] };
      return Object.fromEntries(findings.map(({ check, status }) => [check, status]));
    };
    await domain.killedAt("after backup-begin", { guarded: false });
    const seen = { domain: "ok", "disk vda": "ok", checkpoints: "ok", guest: "warning", scratch: "ok" };
    expect(await look()).toMatchObject({ ...seen, leftovers: "warning" });
    expect(await look("--fix")).toMatchObject({ ...seen, leftovers: "fixed" });
    expect(await look()).not.toHaveProperty("leftovers");
    expect(await domain.leftovers()).toEqual([]);
  });

  test("without an agent where one is required; with auto it is crash consistent, and says so", async () => {
    const before = await domain.checkpoints();
    const required = await domain.backUp("--freeze", "require");
    expect([required.code, errorOf(required)]).toEqual([14, "E_FREEZE"]);
    expect(await domain.checkpoints()).toEqual(before);
    const auto = await domain.backUp();
    expect(generationOf(auto).consistency).toBe("crash");
    expect(auto.said.map(({ message }) => message).slice(-1)).toEqual([
      expect.stringMatching(/crash consistent: .*agent is not connected/),
    ]);
  });

  test.each([
    ["libvirt:none", [], 10, "E_DOMAIN_UNKNOWN"],
    ["libvirt:mail", ["--disk", "sda"], 10, "E_DISK_UNKNOWN"],
    ["libvirt:mail", ["--guest-agent", "/a"], 2, "E_FLAG"],
  ])("%s %j exits with %i", async (source, flags, code, error) => {
    const result = await domain.repository.run(
      "backup",
      source,
      "--connect",
      libvirt.uri,
      ...flags,
      "--json",
    );
    expect([result.code, /"code":"(\w+)"/.exec(result.stderr)?.[1]]).toEqual([code, error]);
  });
});
