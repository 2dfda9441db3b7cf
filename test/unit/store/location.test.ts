import { expect, test } from "vitest";
import { parseLocation } from "../../../src/store/location.ts";
import { openStore } from "../../../src/store/open.ts";

const nothing = { endpoint: undefined, region: undefined, pathStyle: undefined };

test.each([
  ["s3://bucket", { kind: "s3", bucket: "bucket", prefix: "", ...nothing }],
  ["s3://bucket/", { kind: "s3", bucket: "bucket", prefix: "", ...nothing }],
  ["S3://my.bucket/a/b_c-d.e/", { kind: "s3", bucket: "my.bucket", prefix: "a/b_c-d.e/", ...nothing }],
  [
    "s3://bucket/p?endpoint=http://10.0.0.1:9000/&region=eu-west-1&path-style=false",
    {
      kind: "s3",
      bucket: "bucket",
      prefix: "p/",
      endpoint: "http://10.0.0.1:9000",
      region: "eu-west-1",
      pathStyle: false,
    },
  ],
  [
    "s3://bucket?endpoint=https%3A%2F%2Fhost%2Fbase",
    { kind: "s3", bucket: "bucket", prefix: "", ...nothing, endpoint: "https://host/base" },
  ],
  ["/var/backups", { kind: "directory", path: "/var/backups" }],
  ["backups/here", { kind: "directory", path: "backups/here" }],
  ["./a:b", { kind: "directory", path: "./a:b" }],
  ["file:///var/my%20backups", { kind: "directory", path: "/var/my backups" }],
])("%s", (text, location) => {
  expect(parseLocation(text)).toEqual(location);
});

test.each([
  "",
  " ",
  "s3:bucket",
  "s3:/bucket",
  "s3://",
  "s3:///prefix",
  "s3://b",
  "s3://bucket//a",
  "s3://bucket/../a",
  "s3://bucket/a b",
  "s3://bucket?endpoint=host:9000",
  "s3://bucket?endpoint=ftp://host",
  "s3://bucket?endpoint=http://key:secret@host",
  "s3://bucket?region=a&region=b",
  "s3://bucket?path-style=yes",
  "s3://bucket?profile=a",
  "file:var/backups",
  "file://host/var",
  "https://host/bucket",
  "nbd://host",
])("%j is a usage error", async (text) => {
  await expect(openStore(text)).rejects.toEqual(
    expect.objectContaining({ kind: "usage", code: "E_LOCATION" }) as Error,
  );
});

test("keys in a URL are refused, and not repeated", () => {
  const parse = (): unknown => parseLocation("s3://AKIAKEY:secret@bucket/prefix");
  expect(parse).toThrow(/environment/);
  expect(parse).not.toThrow(/secret/);
});

test("a store knows its location without options", async () => {
  expect((await openStore("s3://bucket/p?endpoint=http://host")).location).toBe("s3://bucket/p");
  expect((await openStore("file:///var/backups")).location).toBe("/var/backups");
});
