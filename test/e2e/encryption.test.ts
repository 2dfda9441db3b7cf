import { execFile } from "node:child_process";
import { mkdtemp, open, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { readConfig } from "../../src/repository/config.ts";
import { withMasterKey } from "../../src/repository/key-slots.ts";
import { openStore } from "../../src/store/open.ts";
import { expectFailure } from "../support/failures.ts";
import { temporaryFolder } from "../support/folder.ts";
import { compareFiles, makeImage, patchImage } from "../support/images.ts";
import { startMinio } from "../support/minio.ts";
import type { NbdProcess } from "../support/nbd-process.ts";
import { given } from "../support/passwords.ts";
import { startQemuNbd } from "../support/qemu-nbd.ts";
import { directoryRepository, keysUnder, programFor, type TestRepository } from "../support/repositories.ts";
import { WatchedCli } from "../support/watched-cli.ts";

// each test is many runs of the program, which a busy machine may take its time for
vi.setConfig({ testTimeout: 180_000 });

const run = promisify(execFile);
const BIN = resolve(import.meta.dirname, "../../bin/blockhaul.js");
const PASSWORD = "Tr0ub4dor & drei Bäume";
const NEW_PASSWORD = "zweites Geheimnis";
/** Stands on the disk, and must stand nowhere else. */
const CONTENT = "the content of the disk of web";

let folder: string;
let image: string;
let server: NbdProcess;
let passwordFile: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "blockhaul-encryption-"));
  image = join(folder, "web.raw");
  await makeImage(image, { size: 4 * MiB, seed: 1, parts: [{ kind: "random", length: MiB }] });
  await patchImage(image, [{ offset: 2 * MiB, bytes: Buffer.from(CONTENT.repeat(1000)) }]);
  server = await startQemuNbd(["--read-only", "--format=raw", image], { exportName: "web" });
  passwordFile = join(folder, "password");
  await writeFile(passwordFile, `${PASSWORD}\n`);
});

afterAll(async () => {
  await server.stop();
  await rm(folder, { recursive: true, force: true });
});

/** An encrypted repository in a folder; its program has no password set. */
async function encryptedRepository(): Promise<TestRepository> {
  const location = join(await temporaryFolder(), "repository");
  const env = { BLOCKHAUL_CACHE_DIR: await temporaryFolder() };
  await programFor(location, { ...env, BLOCKHAUL_PASSWORD: PASSWORD }).json("init", "--encrypt");
  return programFor(location, env);
}

/** The program on the same repository, with more in its environment. */
function having(repository: TestRepository, env: Readonly<Record<string, string>>): TestRepository {
  return programFor(repository.location, { ...repository.env, ...env }, repository.objects);
}

describe("init, backup, list, restore, verify with the password given by", () => {
  async function everyCommand(repository: TestRepository): Promise<void> {
    expect(await repository.json("init", "--encrypt")).toMatchObject({ encrypted: true });
    await repository.json("backup", server.uri);
    const { generations } = await repository.json<{ generations: unknown[] }>("list");
    expect(generations).toMatchObject([{ source: "web", kind: "full" }]);
    expect(await repository.json("show", "web")).toMatchObject({ encrypted: true });
    const target = join(await temporaryFolder(), "web.raw");
    await repository.json("restore", "web", "--to", target);
    expect(await compareFiles(target, image)).toBeUndefined();
    expect(await repository.json("verify", "--read-data")).toMatchObject({ problems: [] });
  }

  test.each<[string, () => Record<string, string>]>([
    ["BLOCKHAUL_PASSWORD", () => ({ BLOCKHAUL_PASSWORD: PASSWORD })],
    ["BLOCKHAUL_PASSWORD_FILE", () => ({ BLOCKHAUL_PASSWORD_FILE: passwordFile })],
    ["BLOCKHAUL_PASSWORD_COMMAND", () => ({ BLOCKHAUL_PASSWORD_COMMAND: `cat '${passwordFile}' | cat` })],
  ])("%s, in a directory", async (_, env) => {
    const location = join(await temporaryFolder(), "repository");
    await everyCommand(programFor(location, { ...env(), BLOCKHAUL_CACHE_DIR: await temporaryFolder() }));
  });

  test("BLOCKHAUL_PASSWORD_FILE, in a bucket of MinIO", async () => {
    const minio = await startMinio();
    try {
      const bucket = await minio.createBucket("encrypted");
      const env = { BLOCKHAUL_PASSWORD_FILE: passwordFile, BLOCKHAUL_CACHE_DIR: await temporaryFolder() };
      await everyCommand(programFor(minio.location(bucket, "vms"), { ...minio.env, ...env }));
    } finally {
      await minio.stop();
    }
  });

  test("each way gives the same password", async () => {
    const repository = await encryptedRepository();
    for (const env of [
      { BLOCKHAUL_PASSWORD_FILE: passwordFile },
      { BLOCKHAUL_PASSWORD_COMMAND: `printf '%s\\r\\n' '${PASSWORD}'` },
    ]) {
      expect((await having(repository, env).run("list")).code).toBe(0);
    }
  });

  test("somebody at a terminal, who sees none of it", async () => {
    const location = join(await temporaryFolder(), "repository");
    const onTerminal = async (
      answers: readonly (readonly [string, string])[],
      ...args: string[]
    ): Promise<{ shown: string; code: number }> => {
      const script = join(import.meta.dirname, "../support/on-terminal.py");
      const env = { ...process.env, BLOCKHAUL_REPOSITORY: location };
      const argv = [script, JSON.stringify(answers), process.execPath, BIN, ...args];
      return JSON.parse((await run("python3", argv, { env })).stdout) as { shown: string; code: number };
    };
    const question = "Password of the repository: ";
    const differing = await onTerminal(
      [
        ["new repository: ", "one\r"],
        ["Once more: ", "two\r"],
      ],
      "init",
      "--encrypt",
    );
    expect(differing).toMatchObject({ code: 12, shown: expect.stringContaining("differ") as string });
    const made = await onTerminal(
      [
        ["new repository: ", "secretö\x7f\x7ft\r"], // Backspace takes the ö as one
        ["Once more: ", "junk\x15secret\r"],
      ],
      "init",
      "--encrypt",
    );
    expect(made.code).toBe(0);
    const listed = await onTerminal([[question, "secret\r"]], "list");
    expect(listed).toMatchObject({ code: 0, shown: expect.stringContaining("No generations") as string });
    expect(await onTerminal([[question, "wrong\r"]], "list")).toMatchObject({ code: 12 });
    expect(await onTerminal([[question, "secr\x03"]], "list")).toMatchObject({ code: 130 });
    expect(made.shown + listed.shown).not.toMatch(/secr|junk/);
  });
});

describe("without the right password", () => {
  let repository: TestRepository;

  beforeAll(async () => {
    const env = { BLOCKHAUL_CACHE_DIR: join(folder, "cache") };
    await programFor(join(folder, "refusing"), { ...env, BLOCKHAUL_PASSWORD: PASSWORD }).json(
      "init",
      "--encrypt",
    );
    repository = programFor(join(folder, "refusing"), env);
  });

  test.each<[string, Record<string, string>, number, RegExp]>([
    ["none", {}, 12, /refusing is encrypted and no password was given; set BLOCKHAUL_PASSWORD_FILE/],
    ["a wrong one", { BLOCKHAUL_PASSWORD: "wrong" }, 12, /refusing; check BLOCKHAUL_PASSWORD$/],
    ["a line end more", { BLOCKHAUL_PASSWORD: `${PASSWORD} ` }, 12, /does not open/],
    ["an empty one", { BLOCKHAUL_PASSWORD: "" }, 12, /BLOCKHAUL_PASSWORD: it is empty/],
    ["two", { BLOCKHAUL_PASSWORD: "a", BLOCKHAUL_PASSWORD_FILE: "b" }, 2, /Both .*_PASSWORD and .*_FILE/],
    ["no file", { BLOCKHAUL_PASSWORD_FILE: "/no/such/file" }, 12, /\/no\/such\/file cannot be read/],
    ["an endless file", { BLOCKHAUL_PASSWORD_FILE: "/dev/zero" }, 12, /longer than 1024 bytes/],
    ["a command that fails", { BLOCKHAUL_PASSWORD_COMMAND: "echo x; false" }, 12, /_COMMAND ended with 1/],
    ["an endless command", { BLOCKHAUL_PASSWORD_COMMAND: "yes" }, 12, /longer than 1024 bytes/],
    ["a command of two lines", { BLOCKHAUL_PASSWORD_COMMAND: "echo a; echo b" }, 12, /more than one line/],
    ["a command that says nothing", { BLOCKHAUL_PASSWORD_COMMAND: ":" }, 12, /_COMMAND: it is empty/],
  ])("%s", async (_, env, code, message) => {
    expectFailure(await having(repository, env).run("list"), code, message);
    expect([...(await repository.objects()).keys()]).toHaveLength(2);
  });

  test("a stopped command takes what it started with it", async () => {
    const pidFile = join(await temporaryFolder(), "pid");
    const watched = new WatchedCli({ ...repository.env });
    const command = `sleep 1000 & echo $! > ${pidFile}.new; mv ${pidFile}.new ${pidFile}; wait`;
    const result = await watched.run(["list"], { BLOCKHAUL_PASSWORD_COMMAND: command }, (child) => {
      void vi
        .waitUntil(() => readFile(pidFile, "utf8").catch(() => undefined), { timeout: 60_000 })
        .then(() => child.kill("SIGINT"));
    });
    expect(result.code).toBe(130);
    const pid = Number(await readFile(pidFile, "utf8"));
    await vi.waitUntil(() => processIsGone(pid), { timeout: 20_000 });
  });

  test("a plain repository is refused by whoever has a password (R14), and is not made by mistake", async () => {
    const plain = await directoryRepository();
    const password = having(plain, { BLOCKHAUL_PASSWORD_FILE: passwordFile });
    for (const args of [["list"], ["backup", server.uri], ["key", "list"]]) {
      expectFailure(await password.run(...args), 12, /says that it is not encrypted/);
    }
    const fresh = join(await temporaryFolder(), "fresh");
    expectFailure(await password.run("init", "-r", fresh), 2, /give --encrypt/);
    expect(await readdir(resolve(fresh, ".."))).toEqual([]);
    expectFailure(await plain.run("key", "list"), 2, /is not encrypted and has no keys/);
  });
});

test("key add, list, passwd, remove", async () => {
  const repository = await encryptedRepository();
  const first = having(repository, { BLOCKHAUL_PASSWORD: PASSWORD });
  const second = having(repository, { BLOCKHAUL_PASSWORD: NEW_PASSWORD });
  const newFile = join(await temporaryFolder(), "new");
  await writeFile(newFile, NEW_PASSWORD);
  expectFailure(await first.run("key", "add"), 12, /set BLOCKHAUL_NEW_PASSWORD_FILE/);
  const { added } = await having(first, { BLOCKHAUL_NEW_PASSWORD_FILE: newFile }).json<{ added: string }>(
    "key",
    "add",
    "--label",
    "sheet in the safe",
  );
  const { keys } = await second.json<{ keys: { key: string; status: string; label: string }[] }>(
    "key",
    "list",
  );
  expect(keys.find(({ key }) => key === added)).toMatchObject({
    status: "opened",
    label: "sheet in the safe",
  });
  const other = keys.find(({ key }) => key !== added)!;
  expect(other).toMatchObject({ status: "sealed" });
  const text = await first.run("key", "list");
  expect(text.stdout).toMatch(new RegExp(`^${added} .* another password .* sheet in the safe$`, "m"));
  expect((await repository.run("key", "list")).stdout.match(/not checked/g)).toHaveLength(2);

  const third = having(first, { BLOCKHAUL_NEW_PASSWORD_COMMAND: "echo third" });
  const changed = await third.json<{ removed: string }>("key", "passwd");
  expect(changed.removed).toBe(other.key);
  expectFailure(await first.run("list"), 12, /does not open/);
  expect((await having(repository, { BLOCKHAUL_PASSWORD: "third" }).run("list")).code).toBe(0);

  const { keys: two } = await second.json<{ keys: { key: string; status: string }[] }>("key", "list");
  const thirds = two.find(({ status }) => status === "sealed")!.key;
  expect(await second.json("key", "remove", thirds.slice(0, 20))).toEqual({ removed: thirds });
  expectFailure(await second.run("key", "remove", added), 2, /the last one/);
  expectFailure(await second.run("key", "add", "--label", "\u001b[31m"), 2, /--label/);
  expect(await keysUnder(repository, "keys/")).toEqual([`keys/${added}.json`]);
  expect(await second.json("doctor")).toMatchObject({
    findings: expect.arrayContaining([
      expect.objectContaining({
        check: "repository",
        detail: expect.stringContaining(", encrypted,") as string,
      }),
    ]) as unknown[],
  });
});

test("what the program starts does not inherit passwords", async () => {
  const repository = having(await encryptedRepository(), { BLOCKHAUL_PASSWORD: PASSWORD });
  const command = `printf '%s' "\${BLOCKHAUL_PASSWORD-none}"`;
  await having(repository, { BLOCKHAUL_NEW_PASSWORD_COMMAND: command }).json("key", "add");
  expect((await having(repository, { BLOCKHAUL_PASSWORD: "none" }).run("list")).code).toBe(0);
});

test("no password, no key and no content shows in outputs, lists of processes, objects or the cache", async () => {
  const place = await temporaryFolder();
  const location = join(place, "repository");
  const watched = new WatchedCli({
    BLOCKHAUL_REPOSITORY: location,
    BLOCKHAUL_CACHE_DIR: join(place, "cache"),
  });
  const text = { BLOCKHAUL_PASSWORD: PASSWORD };
  const ok = async (args: readonly string[], env: Readonly<Record<string, string>>): Promise<void> => {
    const { code, stderr } = await watched.run(args, env);
    expect(code, stderr).toBe(0);
  };
  await ok(["init", "--encrypt"], text);
  await ok(["backup", server.uri, "--json"], text);
  await ok(["backup", server.uri], { BLOCKHAUL_PASSWORD_FILE: passwordFile });
  // a command that holds the password itself, and one that runs until it has been looked at
  await ok(["verify", "--read-data"], { BLOCKHAUL_PASSWORD_COMMAND: `printf '%s' '${PASSWORD}'` });
  const fifo = join(place, "fifo");
  await run("mkfifo", [fifo]);
  const lines = new Set<string>();
  await watched.run(["list"], { BLOCKHAUL_PASSWORD_COMMAND: `: '${PASSWORD}'; cat ${fifo}` }, (child) => {
    void open(fifo, "w").then(async (file) => {
      watched.look(child.pid!, lines); // all of it waits for us
      await file.write(PASSWORD);
      await file.close();
    });
  });
  expect([...lines].join("\n")).toMatch(/blockhaul\.js list[^]*sh -c line=[^]*cat /);
  watched.seen.push(...lines);
  await ok(["restore", "web", "--to", join(place, "web.raw"), "--json"], text);
  await ok(["stats"], text);
  await ok(["doctor", server.uri], text);
  await ok(["key", "add", "--json"], { ...text, BLOCKHAUL_NEW_PASSWORD: NEW_PASSWORD });
  await ok(["key", "list"], { BLOCKHAUL_PASSWORD: NEW_PASSWORD });
  await ok(["key", "passwd"], { ...text, BLOCKHAUL_NEW_PASSWORD: "third secret" });
  // and what fails, at every stage
  const wrong = { BLOCKHAUL_PASSWORD: "w r o n g" };
  for (const [args, env] of [
    [["list"], wrong],
    [["list", "--json"], wrong],
    [["list"], { BLOCKHAUL_PASSWORD: `${PASSWORD}\nsecond line` }],
    [["list"], { ...text, BLOCKHAUL_PASSWORD_FILE: passwordFile }],
    [["list"], { BLOCKHAUL_PASSWORD_COMMAND: `printf '%s' '${PASSWORD}'; exit 3` }],
    [["init"], text],
    [["init", "--encrypt"], text],
    [["show", "nothing"], { BLOCKHAUL_PASSWORD: NEW_PASSWORD }],
    [["restore", "web", "--to", "/no/such/folder/web.raw"], { BLOCKHAUL_PASSWORD: NEW_PASSWORD }],
    [["backup", "nbd+unix:///x?socket=/no/such/socket"], { BLOCKHAUL_PASSWORD: NEW_PASSWORD }],
    [["key", "remove", "ffff"], { BLOCKHAUL_PASSWORD: NEW_PASSWORD }],
    [["key", "add"], { BLOCKHAUL_PASSWORD: NEW_PASSWORD, BLOCKHAUL_NEW_PASSWORD: "" }],
  ] as [string[], Record<string, string>][]) {
    expect((await watched.run(args, env)).code).toBeGreaterThan(1);
  }
  const everything = new Map(watched.seen.map((seen, index) => [`output ${index}`, Buffer.from(seen)]));
  for (const tree of ["repository", "cache"]) {
    for (const entry of await readdir(join(place, tree), { recursive: true, withFileTypes: true })) {
      if (!entry.isFile()) continue;
      everything.set(join(entry.parentPath, entry.name), await readFile(join(entry.parentPath, entry.name)));
    }
  }
  expect(everything.size).toBeGreaterThan(50);

  const masterKey = await masterKeyOf(location, NEW_PASSWORD);
  const texts = [PASSWORD, NEW_PASSWORD, "third secret", wrong.BLOCKHAUL_PASSWORD].map((one) =>
    Buffer.from(one),
  );
  const secrets = [...texts, masterKey].flatMap((secret) => [
    secret,
    ...(["hex", "base64", "base64url"] as const).map((form) =>
      Buffer.from(secret.toString(form).replace(/=+$/, "")),
    ),
    Buffer.from(secret.toString("hex").toUpperCase()),
  ]);
  for (const [where, bytes] of everything) {
    for (const secret of secrets)
      expect(bytes.includes(secret), `${where} has ${secret.toString()}`).toBe(false);
    if (!where.startsWith("output")) expect(bytes.includes(CONTENT), where).toBe(false);
  }
});

/** By the code of the program, in this process: no program tells it. */
async function masterKeyOf(location: string, password: string): Promise<Buffer> {
  const never = new AbortController().signal;
  const store = await openStore(location);
  const { sealed } = await readConfig(store, never);
  const key = await withMasterKey(store, sealed, given(password), never, ({ masterKey }) =>
    Buffer.from(masterKey),
  );
  store.close();
  expect(key).toHaveLength(32);
  expect(key.every((byte) => byte === 0)).toBe(false);
  return key;
}

function processIsGone(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return false;
  } catch {
    return true;
  }
}
