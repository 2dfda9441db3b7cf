import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import { KiB, MiB } from "../../src/bytes/size.ts";
import { QmpClient } from "../../src/qemu/qmp/client.ts";
import { runCli, runJson, type CliResult } from "../support/cli.ts";
import { temporaryFolder } from "../support/folder.ts";
import { HandledVm, type HandledDisk } from "../support/handled-vm.ts";
import { startLineServer } from "../support/line-server.ts";
import { MonitorGate, type MonitorPoint } from "../support/monitor-gate.ts";
import { directoryRepository, type TestRepository } from "../support/repositories.ts";

const DISKS: readonly HandledDisk[] = [
  { node: "drive0", size: 8 * MiB },
  { node: "drive1", size: 4 * MiB, format: "raw" },
];

interface ListJson {
  readonly disks: readonly {
    readonly disk: string;
    readonly size: number;
    readonly bitmaps: readonly { readonly name: string; readonly owner: object }[];
  }[];
  readonly nodes: readonly object[];
}

let vm: HandledVm;
let source: string;
let scratch: readonly string[];

beforeEach(async () => {
  vm = await HandledVm.start(DISKS, { folder: await temporaryFolder() });
  source = `qmp:${vm.qmp}`;
  scratch = ["--scratch", vm.scratch];
});

function bitmap(...args: string[]): Promise<CliResult> {
  return runCli(["bitmap", ...args, ...scratch]);
}

function json<T>(...args: string[]): Promise<T> {
  return runJson<T>(["bitmap", ...args, ...scratch]);
}

describe("two repositories and somebody else have bitmaps on one VM", () => {
  let repositories: readonly [TestRepository, TestRepository];

  beforeEach(async () => {
    repositories = [await directoryRepository(), await directoryRepository()];
    for (const one of repositories) await backUp(one);
    await json("add", source, "--disk", "dev-drive0", "mine");
  });

  async function backUp(
    repository: TestRepository,
  ): Promise<{ generation: string; kind: string; reason: string }> {
    return await repository.json("backup", source, "--name", "web", ...scratch);
  }

  async function owners(): Promise<Map<string, object>> {
    const { disks } = await json<ListJson>("list", source);
    return new Map(disks[0]!.bitmaps.map(({ name, owner }) => [name, owner]));
  }

  test("list tells whose each is, as a document and for people", async () => {
    const { disks, nodes } = await json<ListJson>("list", source);
    expect(nodes).toEqual([]);
    expect(disks).toMatchObject([
      { disk: "dev-drive0", size: 8 * MiB },
      { disk: "dev-drive1", size: 4 * MiB },
    ]);
    for (const { bitmaps } of disks) {
      for (const one of bitmaps) {
        const fields = [
          "name",
          "recording",
          "busy",
          "inconsistent",
          "persistent",
          "granularity",
          "dirtyBytes",
          "owner",
        ];
        expect(Object.keys(one).sort()).toEqual(fields.sort());
      }
    }
    const listed = await Promise.all(
      repositories.map((one) => one.json<{ generations: { generation: string }[] }>("list")),
    );
    const ids = listed.map(({ generations }) => generations[0]!.generation).sort();
    const found = [...(await owners()).entries()].map(([name, owner]) => ({ name, ...owner }));
    const ofGenerations = found.filter((one) => "generation" in one);
    expect(ofGenerations.map((one) => one.generation).sort()).toEqual(ids);
    expect(found.filter((one) => !("generation" in one))).toEqual([{ name: "mine", kind: "foreign" }]);

    const { stdout, code } = await bitmap("list", source);
    expect(code).toBe(0);
    const lines = stdout.split("\n");
    expect(lines[0]).toMatch(/^DISK +BITMAP +STATE +PERSISTENT +GRANULARITY +DIRTY +OF$/);
    expect(lines.find((line) => line.includes(" mine "))).toMatch(
      /^dev-drive0 +mine +recording +yes +64\.0 KiB +0 B +others$/,
    );
    expect(stdout).toMatch(/^dev-drive1 .* recording +no .* disk dev-drive1 in generation /m);
  });

  test("what is done to one leaves the others", async () => {
    const before = await owners();
    const name = [...before].find(([, owner]) => "generation" in owner)![0];
    const refused = await bitmap("remove", source, "--disk", "dev-drive0", name);
    expect(refused).toMatchObject({ code: 2, stdout: "" });
    expect(refused.stderr).toContain("--force");
    await json("remove", source, "--disk", "dev-drive0", "mine");
    expect((await owners()).size).toBe(before.size - 1);
    expect(await json("remove", source, "--disk", "dev-drive0", name, "--force")).toEqual({
      disk: "dev-drive0",
      removed: name,
    });
    const left = await owners();
    expect([...left.keys()]).toEqual([...before.keys()].filter((one) => one !== name && one !== "mine"));

    // the repository that lost its bitmap says why it has to read all; the other one goes on
    const next = [await backUp(repositories[0]), await backUp(repositories[1])];
    expect(next.map(({ kind }) => kind).sort()).toEqual(["incremental", "rescan"]);
  });

  test("ranges of a generation's bitmap are what its next incremental reads", async () => {
    await vm.write("drive0", 2 * MiB, 64 * KiB);
    await vm.write("drive0", 5 * MiB, 256 * KiB);
    for (const [name] of await owners()) {
      expect(await json("ranges", source, "--disk", "dev-drive0", name)).toEqual({
        disk: "dev-drive0",
        bitmap: name,
        granularity: 64 * KiB,
        size: 8 * MiB,
        ranges: [
          { offset: 2 * MiB, length: 64 * KiB },
          { offset: 5 * MiB, length: 256 * KiB },
        ],
        bytes: 320 * KiB,
      });
    }
    const { stdout, code } = await bitmap("ranges", source, "--disk", "dev-drive0", "mine");
    expect(code).toBe(0);
    expect(stdout).toContain("320 KiB of dev-drive0 are dirty in mine, in 2 ranges");
    expect(stdout).toMatch(/^2097152 +65536$/m);
    for (const one of repositories) expect(await backUp(one)).toMatchObject({ kind: "incremental" });
    expect(await json("ranges", source, "--disk", "dev-drive0", "mine")).toMatchObject({ bytes: 320 * KiB });
  });
});

test("add says what it made, and that a raw image keeps none", async () => {
  const disk = ["--disk", "dev-drive1"];
  const added = await bitmap("add", source, ...disk, "mine", "--granularity", "1MiB", "--disabled");
  expect(added.code).toBe(0);
  expect(added.stdout).toBe(
    "Disk dev-drive1 has a bitmap mine: disabled, 1.0 MiB a bit, gone when QEMU ends\n",
  );
  expect(added.stderr).toMatch(/^warning: Disk dev-drive1 .*raw.*gone when QEMU ends\n$/);
  expect((await bitmap("add", source, ...disk, "other", "--strict")).code).toBe(16);
  const quiet = await bitmap("add", source, ...disk, "brief", "--transient", "--strict", "--json");
  expect(quiet).toMatchObject({ code: 0, stderr: "" });
  expect(JSON.parse(quiet.stdout)).toMatchObject({
    disk: "dev-drive1",
    bitmap: { name: "brief", recording: true, persistent: false, granularity: 64 * KiB, dirtyBytes: 0 },
  });
});

describe("bad input", () => {
  test.each<[string, number, string, () => string[]]>([
    ["no such subcommand", 2, "unknown command 'frob'", () => ["frob"]],
    ["no --disk", 2, "--disk", () => ["add", source, "x"]],
    ["no monitor", 2, "write qmp:/path", () => ["list", "nbd://h/x"]],
    ["no path", 2, "write qmp:/path", () => ["list", "qmp:"]],
    ["a scratch folder that QEMU may not find", 2, "absolute path", () => ["list", source, "--scratch", "x"]],
    [
      "a size that is none",
      2,
      "Not a size",
      () => ["add", source, "--disk", "d", "x", "--granularity", "much"],
    ],
    ["no such socket", 14, "no such socket", () => ["list", `${source}.none`]],
    ["no such disk", 10, "it has dev-drive0", () => ["ranges", source, "--disk", "sda", "x"]],
    ["no such bitmap", 10, "it has none", () => ["ranges", source, "--disk", "dev-drive0", "x"]],
    ["none to remove", 10, "it has none", () => ["remove", source, "--disk", "dev-drive0", "x"]],
  ])("%s", async (_, code, words, args) => {
    const before = await vm.picture();
    const given = args();
    const result = await runCli(["bitmap", ...given, ...(given.includes("--scratch") ? [] : scratch)]);
    expect(result).toMatchObject({ code, stdout: "" });
    expect(result.stderr).toContain(words);
    expect(await vm.picture()).toEqual(before);
  });

  test("no verb: the verbs there are", async () => {
    const { code, stderr } = await runCli(["bitmap"]);
    expect(code).toBe(2);
    for (const verb of ["list", "add", "remove", "ranges"])
      expect(stderr).toMatch(new RegExp(`^  ${verb} `, "m"));
  });

  test("a socket that is no monitor, a file that is no socket", async () => {
    const mail = await startLineServer({ connected: (socket) => void socket.write("220 mail\r\n") });
    expect(await bitmap("list", `qmp:${mail.path}`)).toMatchObject({ code: 14, stdout: "" });
    const file = join(await temporaryFolder(), "file");
    await writeFile(file, "");
    const result = await bitmap("list", `qmp:${file}`);
    expect(result).toMatchObject({ code: 14, stdout: "" });
    expect(result.stderr).not.toContain("Unexpected");
  });

  test("a monitor that serves somebody else", async () => {
    const other = await QmpClient.connect(vm.qmp, new AbortController().signal);
    const result = await bitmap("list", source);
    await other.close();
    expect(result).toMatchObject({ code: 11, stdout: "" });
    expect(result.stderr).toContain("it serves another client");
  });
});

/** The commands of `ranges` in their order, to the last one. */
const POINTS: readonly MonitorPoint[] = [
  { command: "nbd-server-start", when: "before" },
  { command: "nbd-server-start", when: "after" },
  { command: "transaction", when: "after" },
  { command: "block-export-add", when: "after" },
  { command: "block-export-del", when: "before" },
  { command: "block-export-del", when: "after" },
  { command: "nbd-server-stop", when: "after" },
  { command: "block-dirty-bitmap-remove", when: "before" },
  { command: "block-dirty-bitmap-remove", when: "after" },
];

describe("ranges, ended in the middle", () => {
  let gate: MonitorGate;
  let args: readonly string[];
  let before: object;

  beforeEach(async () => {
    await json("add", source, "--disk", "dev-drive0", "mine");
    await vm.write("drive0", MiB, 64 * KiB);
    before = { ...(await vm.picture()), files: [] };
    gate = await MonitorGate.open(vm.qmp);
    args = ["bitmap", "ranges", `qmp:${gate.path}`, "--disk", "dev-drive0", "mine", ...scratch];
  });

  /** Signals the program at the point. `then` is done when it has got it. */
  async function end(point: MonitorPoint, signal: NodeJS.Signals, then: () => void): Promise<CliResult> {
    return await runCli(args, {
      started: (child) => {
        void gate.arm(point).then(async () => {
          const heard = once(
            signal === "SIGINT" ? child.stderr! : child,
            signal === "SIGINT" ? "data" : "exit",
          );
          child.kill(signal);
          await heard;
          then();
        });
      },
    });
  }

  test.each(POINTS)("by SIGKILL $when $command: the next one clears it", async (point) => {
    const killed = await end(point, "SIGKILL", () => gate.drop());
    expect(killed).toMatchObject({ signal: "SIGKILL", stdout: "" });
    const next = await runCli([...args, "--json"]);
    expect(next.code, next.stderr).toBe(0);
    expect(JSON.parse(next.stdout)).toMatchObject({ ranges: [{ offset: MiB, length: 64 * KiB }] });
    expect(next.stderr).toContain("Cleared what an earlier run left behind");
    expect(await vm.picture()).toEqual(before);
  });

  test("by SIGKILL: list and doctor show it, and doctor --fix clears it", async () => {
    await end({ command: "block-export-add", when: "after" }, "SIGKILL", () => gate.drop());
    const { stdout } = await runCli(["bitmap", "list", `qmp:${gate.path}`, ...scratch]);
    expect(stdout).toMatch(/ bk-[0-9a-f]{12}-tmp +disabled, busy +no .* a run that died$/m);
    const doctor = ["doctor", `qmp:${gate.path}`, ...scratch];
    const shown = await runCli(doctor);
    expect(shown.stdout).toMatch(/leftovers +warning +export bk-.*bitmap bk-/);
    expect((await runCli([...doctor, "--fix"])).stdout).toMatch(/leftovers +fixed +cleared: export bk-/);
    expect(await vm.picture()).toEqual(before);
  });

  test.each(POINTS.slice(1, 5))("by SIGINT $when $command: nothing is left", async (point) => {
    const stopped = await end(point, "SIGINT", () => gate.release());
    expect(stopped.stderr).toContain("SIGINT: stopping");
    // from when all is read on there is nothing left to stop
    expect(stopped.code, stopped.stderr).toBe(POINTS.indexOf(point) < 4 ? 130 : 0);
    expect(stopped.stdout !== "").toBe(stopped.code === 0);
    expect(await vm.picture()).toEqual(before);
  });
});
