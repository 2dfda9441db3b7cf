import { expect, test } from "vitest";
import { backupXml, checkpointXml } from "../../../src/libvirt/backup-xml.ts";
import { imagesOf } from "../../../src/libvirt/domain.ts";
import { parseCheckpoint, tokenOfSocket } from "../../../src/libvirt/names.ts";
import { failed, isLocal, Virsh } from "../../../src/libvirt/virsh.ts";
import { attributeOf, childOf, childrenOf, parseXml, textOf } from "../../../src/libvirt/xml.ts";
import { failure } from "../../support/outcomes.ts";

test.each([
  ["error: failed to get domain 'x'", "notFound", "E_DOMAIN_UNKNOWN"],
  [
    "error: failed to connect to the hypervisor\nerror: Failed to connect socket to '/x'",
    "source",
    "E_LIBVIRT_CONNECT",
  ],
  [
    "error: checkpoint inconsistent: missing or broken bitmap 'c' for disk 'vda'",
    "source",
    "E_CHECKPOINT_BROKEN",
  ],
  [
    "error: Unable to freeze filesystems\nerror: Guest agent is not responding: gone",
    "source",
    "E_AGENT_SILENT",
  ],
  [
    "error: Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatchDomainBackupBegin)",
    "locked",
    "E_DOMAIN_BUSY",
  ],
  [
    "error: operation forbidden: read only access prevents virDomainBackupBegin",
    "credentials",
    "E_LIBVIRT_REFUSED",
  ],
  ["error: internal error: something new", "source", "E_LIBVIRT"],
])("%s", (said, kind, code) => {
  const error = failed("backup-begin", said);
  expect(error).toMatchObject({ kind, code });
  expect(error.message).toBe(`Libvirt: ${said.replace(/^error: /gm, "").replace("\n", ": ")}`);
});

test.each([
  ["qemu:///system", true],
  ["qemu:///session?socket=/run/x", true],
  ["qemu+unix:///system", true],
  ["qemu+ssh://root@host/system", false],
  ["qemu+tls://host/system", false],
  ["qemu+ssh:///system", false],
  ["qemu://host/system", false],
])("%s is on this machine: %s", (uri, local) => {
  expect(isLocal(uri)).toBe(local);
});

test("no daemon: it says so, within its time", async () => {
  const virsh = new Virsh("qemu:///session?socket=/nowhere/libvirt-sock");
  expect(await failure(virsh.run("uri", []))).toMatchObject({ code: "E_LIBVIRT_CONNECT" });
  const stopped = AbortSignal.abort(new Error("stopped"));
  expect(await failure(virsh.run("uri", [], { signal: stopped }))).toMatchObject({ message: "stopped" });
});

test("names of ours, and others", () => {
  const uuid = "11111111-2222-4333-8444-555555555555";
  expect(parseCheckpoint(`bk-${uuid}-${uuid}`)).toEqual({ repository: uuid, generation: uuid });
  for (const name of [`bk-${uuid}-${uuid}-vda`, `bk-${uuid}`, "virtnbdbackup.0"])
    expect(parseCheckpoint(name)).toBeUndefined();
  expect(tokenOfSocket("/var/tmp/bk-0123456789ab.sock")).toBe("0123456789ab");
  expect(tokenOfSocket("/var/tmp/other.sock")).toBeUndefined();
});

test("what is written is escaped, and reads as it was meant", () => {
  const path = `/a "b" <c> & 'd'/é`;
  const disk = { name: "vda", since: "cp", tracked: true, exportName: "e", scratch: path };
  const backup = parseXml(backupXml([disk], path, "tmp"), "domainbackup");
  expect(attributeOf(childOf(backup, "server"), "socket")).toBe(path);
  expect(attributeOf(childOf(backup, "disks", "disk", "scratch"), "file")).toBe(path);
  expect(attributeOf(childOf(backup, "disks", "disk"), "incremental")).toBe("cp");
  const checkpoint = parseXml(checkpointXml("n", "<&>", [disk], ["vdb"]), "domaincheckpoint");
  expect(textOf(childOf(checkpoint, "description"))).toBe("<&>");
  const modes = childrenOf(childOf(checkpoint, "disks"), "disk").map((one) => attributeOf(one, "checkpoint"));
  expect(modes).toEqual(["bitmap", "no"]);
});

test.each([
  "",
  "not xml",
  "<domain>",
  "<other/>",
  "<domain/><domain/>",
  "<domain a='1' a='2'/>",
  "<!DOCTYPE x [<!ENTITY e 'e'>]><domain>&e;&f;</domain>",
])("%s is refused", async (text) => {
  expect(await failure(Promise.resolve().then(() => parseXml(text, "domain")))).toMatchObject({
    code: "E_LIBVIRT_XML",
  });
});

test("the images of a disk, from the top down", () => {
  const xml = parseXml(
    `<disk><source file='/top'/><backingStore type='network'><source protocol='rbd' name='pool/base'/><backingStore/></backingStore></disk>`,
    "disk",
  );
  expect(imagesOf(xml)).toEqual(["/top", "rbd pool/base"]);
  expect(imagesOf(parseXml("<disk/>", "disk"))).toEqual([]);
});
