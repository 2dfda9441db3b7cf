import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { GiB } from "../../src/bytes/size.ts";
import { makeImage } from "../support/images.ts";
import { minioClient, startMinio } from "../support/minio.ts";
import { openS3Gate } from "../support/s3-gate.ts";
import type { S3Server } from "../support/s3-process.ts";
import { startServeProcess } from "../support/serve-process.ts";
import { FreshRepository, whileExported } from "./disks.ts";
import { blockhaul, type Finding, inFolder, type Measure, measure, ratioAtMost } from "./harness.ts";

/** What a profile is for is latency: 30 ms is another continent's, or a slow store's. */
const FAR_MS = 30;
const PROFILE_BAR = 0.5;

/** A program that runs a reader, which finds the connection as `h`. @param reader a file in Python. */
export function connected(uri: string, reader: string): string {
  return `import nbd\nh = nbd.NBD()\nh.connect_uri(${JSON.stringify(uri)})\nexec(open(${JSON.stringify(reader)}).read())`;
}

/** One read after the other, as a guest boots: a few pieces of 16 KiB in each of many places. */
const BOOT_READER = `
import random, time
random.seed(2)
started = time.monotonic()
for _ in range(60):
    place = random.randrange(h.get_size() - 4 * 1024 * 1024) // 4096 * 4096
    for _ in range(5):
        h.pread(16384, place + random.randrange(1024) * 4096)
print(1 / (time.monotonic() - started))
`;

/** The same reads of a generation that was not served before, and of one that was, from a server far away. */
export async function likeLastTime(rounds: number): Promise<Finding[]> {
  return inFolder(async (folder) => {
    const image = join(folder, "boot.raw");
    await makeImage(image, { size: GiB, parts: [{ kind: "random", length: GiB }], seed: 5 });
    const reader = join(folder, "boot.py");
    await writeFile(reader, BOOT_READER);
    const server = await startMinio();
    const gate = await openS3Gate(server.endpoint, FAR_MS);
    try {
      const bucket = await server.createBucket("bench");
      const near = new FreshRepository(
        server.location(bucket, "repository"),
        folder,
        () => Promise.resolve(),
        server.env,
      );
      await near.start();
      await whileExported(["-f", "raw", image], ({ uri }) =>
        measure(blockhaul(["backup", uri, "--name", "boot"], near.env)),
      );
      const endpoints = { AWS_ENDPOINT_URL: gate.endpoint };
      const far = {
        ...near.env,
        ...endpoints,
        BLOCKHAUL_REPOSITORY: near.location.replace(
          encodeURIComponent(server.endpoint),
          encodeURIComponent(gate.endpoint),
        ),
      };
      const boot = async (): Promise<Measure> => {
        const served = await startServeProcess(far, ["boot", "--socket", join(folder, "s")]);
        const done = await measure({
          program: "/usr/bin/python3",
          args: ["-c", connected(served.uri, reader)],
        });
        await served.end("SIGTERM"); // which keeps the profile
        return { ...done, seconds: 1 / Number(done.stdout) };
      };
      const first: Measure[] = [];
      const next: Measure[] = [];
      for (let round = 0; round < rounds; round++) {
        await forgetProfiles(server, bucket);
        for (const measures of [first, next]) {
          measures.push(await boot());
          console.error(
            `  ${measures === first ? "first" : "next"} serve: ${measures.at(-1)!.seconds.toFixed(2)} s`,
          );
        }
      }
      return [
        ratioAtMost(`boot-like reads at ${FAR_MS} ms, next serve / first, wall`, next, first, PROFILE_BAR),
      ];
    } finally {
      await gate.close();
      await server.stop();
    }
  });
}

async function forgetProfiles(server: S3Server, bucket: string): Promise<void> {
  const store = minioClient(server);
  const listed = store.listObjectsV2(bucket, "repository/profiles/", true);
  for await (const { name } of listed as AsyncIterable<{ name: string }>)
    await store.removeObject(bucket, name);
}
