import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { runCli } from "../support/cli.ts";
import { backUpRaw, createQcow2, nbdkit, qemuNbd, type GenerationJson } from "../support/exported-images.ts";
import { expectFailure } from "../support/failures.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage } from "../support/images.ts";
import { directoryRepository, keysUnder, smallPackRepository } from "../support/repositories.ts";

// the client waits up to two minutes for a server that went away
vi.setConfig({ testTimeout: 180_000 });

describe("sources that cannot be", () => {
  test.each<[string, string[], RegExp]>([
    ["a path", ["/images/web.qcow2"], /Not an NBD URI: "\/images\/web.qcow2"; write nbd:\/\/HOST/],
    ["an unknown scheme", ["nbd+ssh://h/web"], /"nbd\+ssh:\/\/h\/web".* must begin with nbd:\/\//],
    ["no slashes", ["nbd:h:10809"], /must have \/\/ after nbd:/],
    ["a unix scheme without socket", ["nbd+unix:///web"], /socket/],
    ["a socket for a TCP scheme", ["nbd://h/web?socket=/run/x"], /socket/],
    ["a port that is none", ["nbd://h:99999/web"], /99999/],
    ["a parameter nobody knows", ["nbd://h/web?timeout=3"], /timeout/],
    ["a password", ["nbd://me:secret@h/web"], /password/],
    ["a fragment", ["nbd://h/web#1"], /%23/],
    ["no name", ["nbd://h"], /--name NAME: the export has no name/],
    ["no source", ["--name", "web"], /SOURCE \(an NBD URI, image:PATH, .*\) or --disk NAME=URI/],
    ["two kinds of source", ["nbd://h/web", "--disk", "a=nbd://h/a"], /either one SOURCE/],
    ["a disk without a name", ["--name", "db", "--disk", "nbd://h/a"], /--disk vda=nbd:/],
    [
      "a disk twice",
      ["--name", "db", "--disk", "a=nbd://h/a", "--disk", "a=nbd://h/b"],
      /Disk a is given twice/,
    ],
    ["a source's name that is none", ["nbd://h/web", "--name", "a/b"], /"a\/b"/],
  ])("%s", async (_, args, message) => {
    const result = await runCli(["backup", "-r", "/nowhere", ...args]);
    expectFailure(result, 2, message);
    expect(result.stderr).not.toContain("secret");
  });
});

describe("exports that are not there", () => {
  test("an export that the server does not have: it says which there are", async () => {
    const repository = await directoryRepository();
    const image = join(await temporaryFolder(), "disk.raw");
    await writeFile(image, Buffer.alloc(MiB, 1));
    const server = await qemuNbd("--format=raw", image);
    const uri = server.uri.replace("/web?", "/wbe?");
    expectFailure(await repository.run("backup", uri), 10, '"wbe"', /web/);
    expect(await keysUnder(repository, "generations/")).toEqual([]);
  });

  test("a bitmap that the export does not have; a parent that is not there, or another's", async () => {
    const repository = await directoryRepository();
    const image = join(await temporaryFolder(), "disk.qcow2");
    await createQcow2(image, MiB);
    const server = await qemuNbd("--format=qcow2", image);
    await repository.json("backup", server.uri);
    await repository.json("backup", server.uri, "--name", "other");
    const incremental = (bitmap: string, ...more: string[]): Promise<Parameters<typeof expectFailure>[0]> =>
      repository.run("backup", server.uri, "--bitmap", bitmap, ...more);
    expectFailure(await incremental("b7", "--parent", "web"), 10, 'no bitmap "b7"', "web");
    expectFailure(
      await incremental("b7"),
      2,
      "Which generation does bitmap b7 belong to",
      "--parent GENERATION",
    );
    expectFailure(await incremental("b7", "--parent", "other"), 2, "is of other, not of web");
    expectFailure(await incremental("b7", "--parent", "none"), 10, '"none"', "web");
    expect(await keysUnder(repository, "generations/")).toHaveLength(2);
  });

  test("nobody listens", async () => {
    const repository = await directoryRepository();
    const socket = join(await temporaryFolder(), "gone.sock");
    const result = await repository.run("backup", `nbd+unix:///web?socket=${socket}`);
    expectFailure(result, 14, socket);
  });
});

test("a server that goes in the middle, for good, ends the run soon; nothing is committed", async () => {
  const repository = await directoryRepository();
  const folder = await temporaryFolder();
  const log = join(folder, "log");
  const image = join(folder, "web.raw");
  await makeImage(image, { size: 16 * MiB, seed: 1, parts: [{ kind: "random", length: 16 * MiB }] });
  const server = await nbdkit(
    ["--readonly", "--filter=log", "--filter=delay", "file", image, `logfile=${log}`, "rdelay=500ms"],
    { exportName: "web" },
  );
  const running = repository.run("backup", server.uri);
  while (!(await readFile(log, "utf8")).includes(" Read ")) await delay(20);
  await server.kill();
  expectFailure(await running, 14, "went away and did not come back", server.socket);
  expect(await keysUnder(repository, "generations/")).toEqual([]);
  expect(await keysUnder(repository, "leases/")).toEqual([]);

  // the run left nothing that stops the next one
  const taken = await backUpRaw(repository, image);
  expect(taken.kind).toBe("full");
  const target = join(folder, "restored.raw");
  await repository.json("restore", "web", "--to", target);
  expect(await compareFiles(target, image)).toBeUndefined();
});

test("read errors on some blocks: nothing is committed; the next run uploads only the rest", async () => {
  const repository = await smallPackRepository();
  const folder = await temporaryFolder();
  const [image, reached] = [join(folder, "web.raw"), join(folder, "reached")];
  const [size, bad] = [24 * MiB, 22 * MiB];
  await makeImage(image, { size, seed: 1, parts: [{ kind: "random", length: size }] });
  // $3 is how much, $4 is where; what is bad fails when we say so
  const pread = `if [ $4 -ge ${bad} ]; then
      until [ -e ${reached} ]; do sleep 0.02; done
      echo EIO >&2; exit 1
    fi
    exec dd if=${image} bs=1M iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none`;
  const flags = ["eval", `get_size=echo ${size}`, `pread=${pread}`];
  const server = await nbdkit(["--readonly", ...flags], { exportName: "web" });
  const running = repository.run("backup", server.uri);
  while ((await keysUnder(repository, "packs/")).length < 4) await delay(20);
  await writeFile(reached, "");
  expectFailure(await running, 14, "EIO", server.uri);
  expect(await keysUnder(repository, "generations/")).toEqual([]);
  const packs = await keysUnder(repository, "packs/");

  const taken = await backUpRaw(repository, image);
  expect(taken.stats.bytesDeduplicated).toBeGreaterThanOrEqual(15 * MiB);
  expect(taken.stats.bytesStored).toBe(size - taken.stats.bytesDeduplicated);
  expect(await keysUnder(repository, "packs/")).toEqual(expect.arrayContaining(packs));
  const target = join(folder, "restored.raw");
  await repository.json("restore", "web", "--to", target);
  expect(await compareFiles(target, image)).toBeUndefined();
});

test("a read error over an earlier generation leaves that one the latest", async () => {
  const repository = await directoryRepository();
  const folder = await temporaryFolder();
  const [image, trigger] = [join(folder, "web.raw"), join(folder, "trigger")];
  await makeImage(image, { size: 2 * MiB, seed: 1, parts: [{ kind: "random", length: 2 * MiB }] });
  const filter = [
    "--readonly",
    "--filter=error",
    "file",
    image,
    "error-pread-rate=100%",
    `error-file=${trigger}`,
  ];
  const server = await nbdkit(filter, { exportName: "web" });
  const first = await repository.json<GenerationJson>("backup", server.uri);
  await writeFile(trigger, "");
  expectFailure(await repository.run("backup", server.uri), 14, "EIO");
  expect(await repository.json("show", "web")).toMatchObject({ generation: first.generation });
  const target = join(folder, "restored.raw");
  await repository.json("restore", "web", "--to", target);
  expect(await compareFiles(target, image)).toBeUndefined();
});
