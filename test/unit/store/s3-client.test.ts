import { PutObjectCommand, type S3Client } from "@aws-sdk/client-s3";
import { expect, test, vi } from "vitest";
import { parseLocation, type S3Location } from "../../../src/store/location.ts";
import { createS3Client } from "../../../src/store/s3-client.ts";

const unseen = { sent: (): void => {}, answered: (): void => {} };

async function clientFor(location: string): Promise<S3Client> {
  const credentials = { accessKeyId: "a", secretAccessKey: "b" };
  return createS3Client(parseLocation(location) as S3Location, { credentials }, unseen);
}

test.each([
  ["s3://my-bucket?region=eu-west-1", "https://my-bucket.s3.eu-west-1.amazonaws.com/"],
  ["s3://my-bucket?region=eu-west-1&path-style=true", "https://s3.eu-west-1.amazonaws.com/my-bucket"],
  ["s3://my-bucket?endpoint=https://storage.example.com", "https://storage.example.com/my-bucket"],
  ["s3://my-bucket?endpoint=http://localhost:9000", "http://localhost:9000/my-bucket"],
  ["s3://my-bucket?endpoint=http://127.0.0.1:9000", "http://127.0.0.1:9000/my-bucket"],
  [
    "s3://my-bucket?endpoint=https://storage.example.com&path-style=false",
    "https://my-bucket.storage.example.com/",
  ],
  [
    "s3://my-bucket?endpoint=https://s3.dualstack.eu-west-1.amazonaws.com&region=eu-west-1",
    "https://my-bucket.s3.dualstack.eu-west-1.amazonaws.com/",
  ],
])("%s asks %s", async (location, url) => {
  const client = await clientFor(location);
  const custom = (await client.config.endpoint?.()) ?? undefined;
  const { port = "" } = custom ?? {};
  const endpoint =
    custom === undefined
      ? {}
      : { Endpoint: `${custom.protocol}//${custom.hostname}${port === "" ? "" : `:${port}`}` };
  const region = await client.config.region();
  const resolved = client.config.endpointProvider({ Region: region, Bucket: "my-bucket", ...endpoint });
  expect(resolved.url.href).toBe(url);
  client.destroy();
});

test("requests do not wait for 100-continue, and carry no checksums that old servers refuse", async () => {
  const client = await clientFor("s3://my-bucket?region=eu-west-1");
  expect(await client.config.requestChecksumCalculation()).toBe("WHEN_REQUIRED");
  expect(await client.config.responseChecksumValidation()).toBe("WHEN_REQUIRED");
  expect(client.config.expectContinueHeader).toBe(false);
  client.destroy();
});

test("nothing is written to the console", async () => {
  const warn = vi.spyOn(console, "warn").mockReturnValue();
  const client = await clientFor("s3://my-bucket?endpoint=https://127.0.0.1:1");
  const command = new PutObjectCommand({ Bucket: "my-bucket", Key: "a", Body: Buffer.alloc(1_000_000) });
  await expect(client.send(command)).rejects.toMatchObject({ code: "ECONNREFUSED" });
  expect(warn).not.toHaveBeenCalled();
  warn.mockRestore();
  client.destroy();
});
