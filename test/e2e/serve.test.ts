import { mkdir, open, readdir, readFile, stat } from "node:fs/promises";
import { createServer } from "node:net";
import { once } from "node:events";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { KiB, MiB } from "../../src/bytes/size.ts";
import { openNbdTarget } from "../../src/nbd/target.ts";
import { parseNbdUri } from "../../src/nbd/uri.ts";
import { makeCertificates, makePskFile } from "../support/certificates.ts";
import { backUpFile, backUpRaw, nbdkit, qemuIo, type GenerationJson } from "../support/exported-images.ts";
import { expectFailure } from "../support/failures.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage } from "../support/images.ts";
import { mountTmpfs, mountsWork } from "../support/mounts.ts";
import { noise } from "../support/random-disk.ts";
import { directoryRepository, keysUnder, programFor } from "../support/repositories.ts";
import { seeded } from "../support/seeded.ts";
import { output, run } from "../support/serve.ts";
import { startServe } from "../support/served-generation.ts";
import { startRestartableMinio } from "../support/restartable-minio.ts";

/** Real clients, libnbd's and QEMU's, against the program as it is installed. */

async function imageIn(folder: string, size = 24 * MiB): Promise<string> {
  const image = join(folder, "web.raw");
  const parts = [
    { kind: "random", length: 3 * MiB },
    { kind: "hole", length: 5 * MiB },
    { kind: "text", length: 9 * MiB },
  ] as const;
  await makeImage(image, { size, seed: 7, parts });
  return image;
}

async function nbdcopied(uri: string, folder: string): Promise<string> {
  const copy = join(folder, "copy.raw");
  await output("nbdcopy", uri, copy);
  return copy;
}

describe("what is served", () => {
  test("the whole disk to nbdcopy and qemu-img, its holes to nbdinfo; SIGTERM ends it with 0, and the pin", async () => {
    const folder = await temporaryFolder();
    const repository = await directoryRepository();
    const image = await imageIn(folder, 24 * MiB + 300);
    const { generation } = await backUpFile(repository, image);
    const socket = join(folder, "s");
    const served = await startServe(repository, ["web", "--socket", socket]);
    expect(served).toMatchObject({ generation, source: "web", exports: [{ disk: "disk", writable: false }] });
    expect(await compareFiles(await nbdcopied(served.uri, folder), image)).toBeUndefined();
    const byDefault = `nbd+unix:///?socket=${socket}`;
    expect(await output("nbdinfo", "--size", byDefault)).toBe(`${24 * MiB + 300}\n`);
    expect(await output("nbdinfo", "--map", "--json", served.uri)).toMatch(/"description": "hole,zero"/);
    expect(await run("nbdinfo", "--is", "read-only", served.uri)).toMatchObject({ code: 0 });
    const runs = await keysUnder(repository, "runs/web/");
    expect(runs.filter((key) => key.endsWith(".begin.json"))).toHaveLength(2);
    expect(runs.filter((key) => key.endsWith(".end.json"))).toHaveLength(1);

    expect(await served.end("SIGTERM")).toMatchObject({ code: 0 });
    await expect(stat(socket)).rejects.toThrow("ENOENT");
    const ends = (await keysUnder(repository, "runs/web/")).filter((key) => key.endsWith(".end.json"));
    expect(ends).toHaveLength(2);
    const last = await readFile(join(repository.location, ends.sort().at(-1)!), "utf8");
    expect(JSON.parse(last)).toMatchObject({ outcome: "done" });
  });

  test("several disks, each under its name, over TCP; or only those asked for", async () => {
    const repository = await directoryRepository();
    const [vda, vdb] = [await nbdkit(["pattern", "3M"]), await nbdkit(["memory", "5M"])];
    await repository.json("backup", "--name", "db", "--disk", `vda=${vda.uri}`, "--disk", `vdb=${vdb.uri}`);
    const both = await startServe(repository, ["db", "--listen", "0"]);
    expect(both.exports.map(({ disk }) => disk)).toEqual(["vda", "vdb"]);
    expect(await output("nbdinfo", "--list", both.uri.replace(/vda$/, ""))).toMatch(
      /export="vda"[\s\S]*export="vdb"/,
    );
    expect(await output("nbdinfo", "--size", both.exports[1]!.uri)).toBe(`${5 * MiB}\n`);
    expect((await run("nbdinfo", "--size", both.uri.replace(/vda$/, ""))).code).not.toBe(0); // which one?
    expect((await output("qemu-img", "compare", both.uri, vda.uri)).trim()).toBe("Images are identical.");
    await both.end("SIGINT");
    const one = await startServe(repository, ["db", "--disk", "vdb", "--listen", "0"]);
    expect(one.exports.map(({ disk }) => disk)).toEqual(["vdb"]);
    expectFailure(
      await repository.run("serve", "db", "--disk", "vdc", "--listen", "0"),
      10,
      "vdc",
      "vda, vdb",
    );
  });

  test("what was read is kept on a local disk, and recorded for the next serve", async () => {
    const folder = await temporaryFolder();
    const repository = await directoryRepository();
    const image = await imageIn(folder);
    await backUpFile(repository, image);
    const cache = join(folder, "cache");
    const args = ["web", "--socket", join(folder, "s"), "--cache-disk", cache, "--cache-disk-size", "1GiB"];
    for (const round of [1, 2]) {
      const served = await startServe(repository, args);
      expect(await compareFiles(await nbdcopied(served.uri, folder), image)).toBeUndefined();
      expect(await served.end("SIGTERM"), `round ${round}`).toMatchObject({ code: 0 });
      const files = (await readdir(cache, { recursive: true })).filter((name) => name.includes("-"));
      expect(files.length).toBeGreaterThanOrEqual(8); // of 48 chunks: as many writes as may wait; a slow disk gets no more
      expect(await keysUnder(repository, "profiles/web/")).toHaveLength(1);
    }
    const nowhere = await repository.run("serve", "web", "--cache-disk", join(image, "below"));
    expectFailure(nowhere, 2, "cannot be used as a cache");
  });

  test("an encrypted generation out of a bucket, whose server goes away for a moment", async () => {
    const minio = await startRestartableMinio();
    onTestFinished(() => minio.stop());
    const folder = await temporaryFolder();
    const image = await imageIn(folder);
    const env = { ...minio.env, BLOCKHAUL_PASSWORD: "of the test", BLOCKHAUL_CACHE_DIR: folder };
    const repository = programFor(minio.location("away"), env);
    await repository.json("init", "--encrypt");
    await backUpRaw(repository, image);
    const served = await startServe(repository, ["web", "--socket", join(folder, "s")]);
    expect(await output("nbdinfo", "--size", served.uri)).toBe(`${24 * MiB}\n`);
    await minio.kill();
    const copying = nbdcopied(served.uri, folder);
    await minio.start();
    expect(await compareFiles(await copying, image)).toBeUndefined();
    expect(await served.end("SIGTERM")).toMatchObject({ code: 0 });
  });
});

describe("how it is reached", () => {
  test("certificates, or keys: nobody is served in clear", async () => {
    const folder = await temporaryFolder();
    const repository = await directoryRepository();
    await backUpRaw(repository, await imageIn(folder));
    const certificates = await makeCertificates(folder);
    const port = (uri: string): string => /:(\d+)\//.exec(uri)![1]!;
    const strict = ["--tls-certificates", certificates.server, "--tls-verify-client"];
    const byCertificate = await startServe(repository, ["web", "--listen", "0", ...strict]);
    const at = `127.0.0.1:${port(byCertificate.uri)}/web`;
    const good = await run("nbdinfo", "--size", `nbds://${at}?tls-certificates=${certificates.client}`);
    expect(good).toMatchObject({ stdout: `${24 * MiB}\n` });
    expect((await run("nbdinfo", `nbds://${at}?tls-certificates=${certificates.anonymous}`)).code).not.toBe(
      0,
    );
    expect((await run("nbdinfo", `nbd://${at}`)).code).not.toBe(0);

    const keys = join(folder, "keys.psk");
    await makePskFile(keys, ["alice"]);
    const byKey = await startServe(repository, ["web", "--listen", "0", "--tls-psk", keys]);
    const keyUri = `nbds://alice@127.0.0.1:${port(byKey.uri)}/web?tls-psk-file=${keys}`;
    expect(await output("nbdinfo", "--size", keyUri)).toBe(`${24 * MiB}\n`);
    expectFailure(await repository.run("serve", "web", "--tls-certificates", folder), 2, "server-cert.pem");
    expectFailure(await repository.run("serve", "web", "--tls-verify-client"), 2, "--tls-certificates");
  });

  test("a socket of systemd's; a socket that a killed one left; but not one on which somebody listens", async () => {
    const folder = await temporaryFolder();
    const repository = await directoryRepository();
    await backUpRaw(repository, await imageIn(folder));
    const socket = join(folder, "activated");
    const activate = [
      "systemd-socket-activate",
      "-l",
      socket,
      ...Object.keys(repository.env).map((name) => `-E${name}`),
    ];
    const starting = startServe(repository, ["web"], activate);
    await waitForSocket(socket);
    const size = output("nbdinfo", "--size", `nbd+unix:///web?socket=${socket}`); // this is what starts it
    expect(await size).toBe(`${24 * MiB}\n`);
    expect((await starting).uri).toBe(`nbd+unix:///web?socket=${encodeURIComponent(socket)}`);

    const left = join(folder, "left");
    const killed = await startServe(repository, ["web", "--socket", left]);
    await killed.end("SIGKILL");
    const next = await startServe(repository, ["web", "--socket", left]);
    expect(await output("nbdinfo", "--size", next.uri)).toBe(`${24 * MiB}\n`);
    expectFailure(await repository.run("serve", "web", "--socket", left), 2, left);
    expect(await output("nbdinfo", "--size", next.uri)).toBe(`${24 * MiB}\n`);
  });

  test("other machines only with a warning, when there is no TLS", async () => {
    const folder = await temporaryFolder();
    const repository = await directoryRepository();
    await backUpRaw(repository, await imageIn(folder));
    const open = await startServe(repository, ["web", "--listen", "0.0.0.0:0"]);
    expect(open.said()).toMatch(/"level":"warning".*no TLS/);
    const closed = await startServe(repository, ["web", "--listen", "0"]);
    expect(closed.said()).not.toMatch(/warning/);
    expectFailure(await repository.run("serve", "web", "--listen", "host:name"), 2, "host:name");
    const taken = createServer().listen(0, "127.0.0.1");
    await once(taken, "listening");
    onTestFinished(() => void taken.close());
    const { port } = taken.address() as { port: number };
    expectFailure(await repository.run("serve", "web", "--listen", `${port}`), 2, `${port} is taken`);
  });
});

describe("an overlay", () => {
  test("killed in the middle of writes: what was flushed is there, the rest old or new, block by block", async () => {
    const folder = await temporaryFolder();
    const repository = await directoryRepository();
    const image = await imageIn(folder);
    await backUpRaw(repository, image);
    const args = ["web", "--socket", join(folder, "s"), "--overlay", join(folder, "o")];
    const random = seeded(4711);
    const grain = 4 * KiB;
    const truth = await readFile(image); // as of the last flush that was answered
    const perhaps = new Map<number, Buffer[]>(); // by grain: what was written since
    const { signal } = new AbortController();
    for (let round = 0; round < 3; round++) {
      const served = await startServe(repository, args);
      const target = await openNbdTarget(
        parseNbdUri(served.uri),
        { connections: 2, retry: NO_RETRY },
        signal,
      );
      const flushed = Promise.withResolvers<undefined>();
      const writing = (async () => {
        for (let step = 0; ; step++) {
          await Promise.all(
            new Set(Array.from({ length: 8 }, () => random(truth.length / grain)))
              .values()
              .map(async (place) => {
                const bytes = noise(round * 100_000 + step * 10_000 + place, grain);
                perhaps.set(place, [...(perhaps.get(place) ?? []), bytes]);
                await target.write(place * grain, bytes, signal);
              }),
          );
          if (step % 3 !== 2) continue;
          await target.flush(signal);
          for (const [place, versions] of perhaps) versions.at(-1)!.copy(truth, place * grain);
          perhaps.clear();
          if (step > 12) flushed.resolve(undefined);
        }
      })();
      const failed = writing.catch(() => undefined);
      await Promise.race([flushed.promise, failed]);
      await served.end("SIGKILL");
      await failed;
      await target.close();

      const again = await startServe(repository, args);
      const copy = await open(await nbdcopied(again.uri, folder));
      const found = await copy.readFile();
      await copy.close();
      for (let place = 0; place < truth.length / grain; place++) {
        const now = found.subarray(place * grain, (place + 1) * grain);
        const old = truth.subarray(place * grain, (place + 1) * grain);
        const versions = [old, ...(perhaps.get(place) ?? [])];
        expect(
          versions.some((version) => version.equals(now)),
          `round ${round}, block ${place}`,
        ).toBe(true);
      }
      found.copy(truth);
      perhaps.clear();
      expect(await again.end("SIGTERM")).toMatchObject({ code: 0 });
    }
  });

  test("qemu-io's writes, zeroes and discards, read again after a restart; base:allocation follows", async () => {
    const folder = await temporaryFolder();
    const repository = await directoryRepository();
    await backUpRaw(repository, await imageIn(folder));
    const args = ["web", "--socket", join(folder, "s"), "--overlay", join(folder, "o")];
    const first = await startServe(repository, args);
    expect(first.exports).toMatchObject([{ writable: true }]);
    await qemuIo(
      "raw",
      first.uri,
      "write -P 1 5 1000",
      "write -f -P 2 4M 300k",
      "write -z -u 10M 1M",
      "discard 12M 2M",
    );
    const reads = ["read -P 1 5 1000", "read -P 2 4M 300k", "read -P 0 10M 1M", "read -P 0 12M 2M"];
    await qemuIo("raw", first.uri, ...reads);
    await first.end("SIGTERM");
    const second = await startServe(repository, args);
    await qemuIo("raw", second.uri, ...reads);
    const map = JSON.parse(await output("nbdinfo", "--map", "--json", second.uri)) as Mapped[];
    const at = (offset: number): number => map.findLast((extent) => extent.offset <= offset)!.type;
    expect([0, 4 * MiB, 7 * MiB, 10 * MiB, 12 * MiB, 16 * MiB].map(at)).toEqual([0, 0, 3, 3, 3, 0]);
  });

  test("belongs to one generation and disk, and to one process; several disks have a folder of them", async () => {
    const folder = await temporaryFolder();
    const repository = await directoryRepository();
    const image = await imageIn(folder);
    const first: GenerationJson = await backUpRaw(repository, image);
    const second = await backUpRaw(repository, image);
    const overlay = join(folder, "o");
    const served = await startServe(repository, [first.generation, "--listen", "0", "--overlay", overlay]);
    const again = ["serve", first.generation, "--listen", "0", "--overlay", overlay];
    expectFailure(await repository.run(...again), 11, overlay);
    await served.end("SIGKILL");
    const other = ["serve", second.generation, "--listen", "0", "--overlay", overlay];
    expectFailure(await repository.run(...other), 2, overlay, first.generation);
    expectFailure(await repository.run("serve", "web", "--listen", "0", "--overlay", image), 2, image);

    const disks = [await nbdkit(["memory", "1M"]), await nbdkit(["memory", "1M"])];
    await repository.json(
      "backup",
      "--name",
      "db",
      ...disks.flatMap(({ uri }, index) => ["--disk", `vd${index}=${uri}`]),
    );
    const several = await startServe(repository, [
      "db",
      "--listen",
      "0",
      "--overlay",
      join(folder, "several"),
    ]);
    await qemuIo("raw", several.exports[1]!.uri, "write -P 9 0 1M");
    await qemuIo("raw", several.exports[0]!.uri, "read -P 0 0 1M");
    for (const disk of ["vd0", "vd1"]) await stat(join(folder, "several", `${disk}.overlay`));
  });

  if (mountsWork()) {
    test("a full disk fails the writes that find no room, with ENOSPC, and nothing else", async () => {
      const folder = await temporaryFolder();
      const repository = await directoryRepository();
      await backUpRaw(repository, await imageIn(folder));
      const small = join(folder, "small");
      await mkdir(small);
      const mounted = mountTmpfs(small, MiB);
      const args = ["web", "--socket", join(folder, "s"), "--overlay", join(small, "o")];
      const served = await startServe(repository, args);
      await qemuIo("raw", served.uri, "write -P 1 0 64k", "flush");
      const full = await run("qemu-io", "-f", "raw", "-c", "write -P 2 1M 4M", served.uri);
      expect(full.stdout + full.stderr).toMatch(/No space left on device/);
      expect(served.said()).toMatch(/No room to write/);
      await qemuIo("raw", served.uri, "read -P 1 0 64k", "write -P 3 100 1000", "flush");
      mounted.resize(16 * MiB);
      await qemuIo("raw", served.uri, "write -P 2 1M 4M", "flush", "read -P 2 1M 4M", "read -P 3 100 1000");
    });
  }
});

test("a damaged pack: EIO for its range only, said with generation and range; the server lives on", async () => {
  const folder = await temporaryFolder();
  const repository = await directoryRepository();
  const image = await imageIn(folder);
  const { generation } = await backUpRaw(repository, image);
  const [pack] = await keysUnder(repository, "packs/");
  const file = await open(join(repository.location, pack!), "r+");
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, MiB + 100); // in the fifth chunk, which is random and so stored as it is
  await file.write(Buffer.from([byte[0]! ^ 1]), 0, 1, MiB + 100);
  await file.close();
  const served = await startServe(repository, ["web", "--socket", join(folder, "s")]);
  const read = await run("qemu-io", "-f", "raw", "-r", "-c", "read 1M 64k", served.uri);
  expect(read.stdout + read.stderr).toMatch(/Input\/output error/);
  expect((await run("nbdcopy", served.uri, "null:")).code).not.toBe(0);
  await output(
    "qemu-io",
    "-f",
    "raw",
    "-r",
    "-c",
    "read 0 1M",
    "-c",
    `read ${MiB + 256 * KiB} 16M`,
    served.uri,
  );
  expect(served.said()).toMatch(
    new RegExp(`Bytes \\d+ to \\d+ of disk web of web, generation ${generation}`),
  );
  expect(served.said().match(/damaged at slot 4/g)!.length).toBeLessThanOrEqual(2); // cause and chain, not every request
});

interface Mapped {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
}

/** A lost connection is lost. */
const NO_RETRY = { attemptsMax: 1, baseMs: 1, waitMaxMs: 1, budgetMs: 1 };

async function waitForSocket(path: string): Promise<void> {
  while (
    !(await stat(path).then(
      () => true,
      () => false,
    ))
  )
    await new Promise(setImmediate);
}
