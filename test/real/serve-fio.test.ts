import { join } from "node:path";
import { expect, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { backUpFile } from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage } from "../support/images.ts";
import { directoryRepository } from "../support/repositories.ts";
import { output, run } from "../support/serve.ts";
import { startServe } from "../support/served-generation.ts";

/** Debian's fio by its NBD engine. */

interface FioReport {
  readonly jobs: readonly {
    readonly error: number;
    readonly read: { readonly total_ios: number };
    readonly write: { readonly total_ios: number };
  }[];
}

async function fio(uri: string, ...options: readonly string[]): Promise<FioReport["jobs"][number]> {
  const common = ["--name=one", "--ioengine=nbd", `--uri=${uri}`, "--iodepth=16", "--randseed=7"];
  const said = await output("fio", "--output-format=json", ...common, ...options);
  const { jobs } = JSON.parse(said.slice(said.indexOf("{"))) as FioReport;
  expect(jobs).toHaveLength(1);
  return jobs[0]!;
}

test("many writes of any size at random places, each read back as it was; the generation stays as it is", async () => {
  const folder = await temporaryFolder();
  const repository = await directoryRepository();
  const image = join(folder, "web.raw");
  const size = 24 * MiB;
  const parts = [
    { kind: "random", length: 9 * MiB },
    { kind: "hole", length: 6 * MiB },
  ] as const;
  await makeImage(image, { size, seed: 3, parts });
  await backUpFile(repository, image);
  const [socket, overlay] = [join(folder, "s"), join(folder, "overlay")];
  const writable = await startServe(repository, ["web", "--socket", socket, "--overlay", overlay]);
  const written = await fio(
    writable.uri,
    "--rw=randrw",
    "--bsrange=512-128k",
    "--bs_unaligned=0",
    `--size=${size}`,
    "--verify=crc32c",
    "--fsync=64",
  );
  expect(written).toMatchObject({ error: 0 });
  expect(written.write.total_ios).toBeGreaterThan(50);
  expect(await writable.end("SIGTERM")).toMatchObject({ code: 0 });

  const served = await startServe(repository, ["web", "--socket", socket]);
  const readThrough = await fio(served.uri, "--rw=randread", "--bs=4k", `--size=${size}`);
  expect(readThrough).toMatchObject({ error: 0, read: { total_ios: size / 4096 } });
  const refused = await run(
    "fio",
    "--name=one",
    "--ioengine=nbd",
    `--uri=${served.uri}`,
    "--rw=write",
    "--bs=4k",
    "--size=4k",
  );
  expect(refused.code).not.toBe(0); // it is read-only
  const copy = join(folder, "copy.raw");
  await output("nbdcopy", served.uri, copy);
  expect(await compareFiles(copy, image)).toBeUndefined();
});
