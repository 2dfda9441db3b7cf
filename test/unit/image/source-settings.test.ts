import { resolve } from "node:path";
import { expect, test } from "vitest";
import { imageFormat } from "../../../src/image/formats.ts";
import { wantedImages } from "../../../src/jobs/connect-source.ts";
import { jobFileSchema } from "../../../src/jobs/schema.ts";
import { sourceSettings } from "../../../src/settings.ts";

test("a single image is named by its file, and its disk by what the repository knows", () => {
  const images = [{ disk: undefined, fallback: "web", path: "/vm/web.qcow2" }];
  expect(sourceSettings("image:/vm/web.qcow2", [], undefined)).toEqual({
    kind: "image",
    name: "web",
    images,
  });
  expect(sourceSettings("image:/vm/web.qcow2", [], "vm")).toMatchObject({ name: "vm", images });
  expect(sourceSettings("image:/vm/my web.qcow2", [], "vm")).toMatchObject({
    images: [{ fallback: "disk" }],
  });
});

test("several are disks of a source that has to be named", () => {
  const flags = ["vda=image:/vm/a=b.qcow2", "vdb=image:b.raw"];
  const settings = sourceSettings(undefined, flags, "db");
  if (settings.kind !== "image") throw new Error(settings.kind);
  expect(wantedImages(settings, undefined)).toEqual([
    { disk: "vda", fallback: "vda", path: "/vm/a=b.qcow2", format: "qcow2" },
    { disk: "vdb", fallback: "vdb", path: resolve("b.raw"), format: "raw" },
  ]);
});

test.each([
  ["image:", [], "x", 'Not an image: "image:"'],
  ["image:/vm/my web.qcow2", [], undefined, "Give the backup a name with --name NAME"],
  [undefined, ["vda=image:/a.raw"], undefined, "several images have none"],
  [undefined, ["vda=image:/a.raw", "vda=image:/b.raw"], "x", "Disk vda is given twice"],
  [undefined, ["vda=image:/a.raw", "vdb=nbd://h/vdb"], "x", 'Not NAME=image:PATH: "vdb=nbd://h/vdb"'],
  [undefined, ["vd a=image:/a.raw"], "x", 'Not NAME=image:PATH: "vd a=image:/a.raw"'],
  ["image:/a.raw", ["vda=image:/a.raw"], "x", "Give either one SOURCE"],
])("%s and --disk %s: refused", (source, disks, name, message) => {
  expect(() => sourceSettings(source, disks, name)).toThrow(message);
});

test.each([
  ["/a.qcow2", "qcow2"],
  ["/a.QCOW2", "qcow2"],
  ["/a.raw", "raw"],
  ["/a.img", "raw"],
  ["/a.vmdk", "vmdk"],
  ["/a.vdi", "vdi"],
  ["/a.vhdx", "vhdx"],
  ["/a.vhd", "vpc"],
  ["/a.vpc", "vpc"],
])("%s is an image of format %s, unless another is said", (path, format) => {
  expect(imageFormat(path, undefined)).toBe(format);
  expect(imageFormat(path, "vdi")).toBe("vdi");
});

test("a name that does not tell the format is refused; the content is never asked", () => {
  for (const path of ["/dev/vg/web", "/a", "/a.iso", "/a.qcow2.bak", "/.qcow2"]) {
    expect(() => imageFormat(path, undefined)).toThrow(/does not tell its format.*--format raw/);
  }
  expect(() => imageFormat("/a.raw", "iso")).toThrow('Not a format of images: "iso"; use qcow2, raw,');
});

test("a file of jobs", () => {
  const problems = (web: object): string[] => {
    const file = { repositories: {}, sources: { web }, jobs: {} };
    return jobFileSchema.safeParse(file).error?.issues.map(({ message }) => message) ?? [];
  };
  expect(problems({ uri: "image:/vm/web.qcow2" })).toEqual([]);
  expect(problems({ uris: { vda: "image:/vm/a.qcow2", vdb: "image:/vm/b.raw" } })).toEqual([]);
  expect(problems({ uri: "image:/dev/vg/web", format: "raw", leave_images: true })).toEqual([]);
  expect(problems({ uri: "image:/dev/vg/web" })).toEqual([
    expect.stringContaining("does not tell its format"),
  ]);
  expect(problems({ uri: "image:/vm/web.raw", freeze: "off" })).toEqual([
    "only of a QEMU that runs (uri: qmp:PATH or libvirt:DOMAIN)",
  ]);
  expect(problems({ uri: "nbd://h/x", format: "raw" })).toEqual([
    "only of an image that no VM runs on (uri: image:PATH)",
  ]);
});
