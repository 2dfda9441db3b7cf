import { tmpdir } from "node:os";
import { describe, expect, test } from "vitest";
import {
  generationBitmap,
  parseGenerationBitmap,
  parseNode,
  RunNames,
  tokenOfBitmap,
  tokenOfExport,
  tokenOfFile,
  tokenOfJob,
  tokenOfRun,
} from "../../../src/qemu/names.ts";

const RUN = "01990000-0000-7000-8000-0123456789ab";
const REPOSITORY = "11111111-2222-4333-8444-555555555555";
const names = new RunNames(tokenOfRun(RUN));

describe("names of a run", () => {
  test("are what QEMU takes, and are recognised", () => {
    for (const index of [0, 7, 1023]) {
      for (const role of ["s", "f", "b", "c", "a"] as const) {
        const node = names.node(role, index);
        expect(node.length).toBeLessThanOrEqual(31);
        expect(parseNode(node)).toEqual({ token: "0123456789ab", role, index });
      }
      expect(tokenOfJob(names.job(index))).toBe(names.token);
      expect(tokenOfExport(names.export(index))).toBe(names.token);
      expect(tokenOfBitmap(names.markBitmap(index))).toBe(names.token);
      expect(tokenOfFile(names.scratchFile("", index))).toBe(names.token);
    }
    expect(tokenOfBitmap(names.temporaryBitmap)).toBe(names.token);
    expect(tokenOfFile(names.runFile(""))).toBe(names.token);
    expect(tokenOfFile(names.socket(""))).toBeUndefined();
  });

  test("no kind is taken for another", () => {
    expect(tokenOfJob(names.export(1))).toBeUndefined();
    expect(tokenOfExport(names.job(1))).toBeUndefined();
    expect(parseNode(names.job(1))).toBeUndefined();
    expect(tokenOfBitmap(names.node("s", 1))).toBeUndefined();
    expect(tokenOfBitmap(generationBitmap(REPOSITORY, RUN, "vda"))).toBeUndefined();
    expect(parseGenerationBitmap(names.temporaryBitmap)).toBeUndefined();
  });

  test.each([
    "bk-0123456789ab",
    "bk-0123456789AB-s0",
    "bk-0123456789ab-s00",
    "bk-0123456789ab-s01",
    "bk-0123456789ab-x0",
    "bk-0123456789ab-s0x",
    "xbk-0123456789ab-s0",
    "bk-0123456789abc-s0",
    "bk-s0",
    "",
  ])("%j is somebody else's", (name) => {
    for (const parse of [parseNode, tokenOfJob, tokenOfExport, tokenOfBitmap, tokenOfFile]) {
      expect(parse(name)).toBeUndefined();
    }
  });

  test("a socket's path is one that the system takes", () => {
    expect(names.socket("/run")).toBe("/run/bk-0123456789ab.sock");
    const longest = `/${"d".repeat(107 - "//bk-0123456789ab.sock".length)}`;
    expect(names.socket(longest)).toHaveLength(107);
    expect(names.socket(`${longest}d`)).toBe(`${tmpdir()}/bk-0123456789ab.sock`);
    expect(names.socket(`/${"ä".repeat(50)}`)).toBe(`${tmpdir()}/bk-0123456789ab.sock`);
  });
});

describe("the bitmap of a generation", () => {
  test.each(["vda", "virtio-0", "a.b_c", "x".repeat(128)])("of disk %s is read back", (disk) => {
    const name = generationBitmap(REPOSITORY, RUN, disk);
    expect(Buffer.byteLength(name)).toBeLessThan(1023);
    expect(parseGenerationBitmap(name)).toEqual({ repository: REPOSITORY, generation: RUN, disk });
  });

  test.each([`bk-${REPOSITORY}-${RUN}`, `bk-${REPOSITORY}-${RUN}-`, `bk-${RUN}-vda`, "bk-G1", "libvirt-1"])(
    "%j is none",
    (name) => expect(parseGenerationBitmap(name)).toBeUndefined(),
  );
});
