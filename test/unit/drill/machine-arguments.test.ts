import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { GiB } from "../../../src/bytes/size.ts";
import { bestAccelerator } from "../../../src/drill/accelerator.ts";
import { machineArguments } from "../../../src/drill/machine-arguments.ts";
import { temporaryFolder } from "../../support/folder.ts";

const wish = { qemu: "qemu-system-x86_64", accelerator: "tcg", memory: 2 * GiB, cpus: 2, more: [] } as const;

test("a machine without network, with each disk in order, the user's arguments last", () => {
  const place = {
    nbd: "/var/tmp/a,b/nbd.sock",
    agent: "/var/tmp/a,b/agent.sock",
    disks: ["vda", "a-name-of-more-than-20-bytes"],
  };
  const args = machineArguments({ ...wish, more: ["-bios", "OVMF.fd"] }, place);
  expect(args.slice(-2)).toEqual(["-bios", "OVMF.fd"]);
  expect(args[args.indexOf("-nic") + 1]).toBe("none");
  expect(args).toContain("-no-reboot");
  expect(args[args.indexOf("-m") + 1]).toBe("2048M");
  expect(args.filter((arg) => arg.includes("/var/tmp/a,,b/agent.sock,"))).toHaveLength(1);
  const disks = args.filter((arg) => arg.startsWith("{")).map((arg) => JSON.parse(arg) as object);
  expect(disks).toMatchObject([
    { driver: "nbd", export: "vda", server: { type: "unix", path: "/var/tmp/a,b/nbd.sock" } },
    { driver: "virtio-blk-pci", serial: "vda" },
    { driver: "nbd", export: "a-name-of-more-than-20-bytes" },
    { driver: "virtio-blk-pci", serial: "a-name-of-more-than-" },
  ]);
});

test("KVM needs its device and a processor that virtualises", async () => {
  const folder = await temporaryFolder();
  const [device, able, unable] = ["kvm", "able", "unable"].map((name) => join(folder, name));
  await writeFile(device!, "");
  await writeFile(able!, "processor\t: 0\nflags\t\t: fpu vme vmx smx\n");
  await writeFile(unable!, "processor\t: 0\nflags\t\t: fpu vme svm_lock\nvmx flags\t: none\n");
  expect(await bestAccelerator(device, able)).toBe("kvm");
  expect(await bestAccelerator(device, unable)).toBe("tcg");
  expect(await bestAccelerator(join(folder, "none"), able)).toBe("tcg");
});
