import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, readdir, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { findRuns, removeRunFiles, RunFile } from "../../../src/qemu/run-file.ts";
import { temporaryFolder } from "../../support/folder.ts";
import { failure } from "../../support/outcomes.ts";

const TOKEN = "0123456789ab";

async function made(): Promise<{ folder: string; qmp: string; file: RunFile }> {
  const folder = join(await temporaryFolder(), "new", "scratch");
  const qmp = join(folder, "..", "qmp.sock");
  return { folder, qmp, file: await RunFile.create(folder, TOKEN, qmp) };
}

/** As if the run's process had been another one. */
async function rewrite(path: string, changes: object): Promise<void> {
  const record = JSON.parse(await readFile(path, "utf8")) as object;
  await writeFile(path, JSON.stringify({ ...record, ...changes }));
}

describe("the file that marks a run", () => {
  test("names this process, for nobody else to read", async () => {
    const { folder, qmp, file } = await made();
    expect(await readdir(folder)).toEqual([`bk-${TOKEN}.run`]);
    expect((await stat(file.path)).mode & 0o777).toBe(0o600);
    expect(await findRuns(folder, qmp)).toEqual([
      { token: TOKEN, pid: process.pid, stopped: false, froze: false, beginning: false, sameMonitor: true },
    ]);
  });

  test("says that the VM was stopped, and that the run gave up", async () => {
    const { folder, qmp, file } = await made();
    await file.setStopped(true);
    expect(await findRuns(folder, qmp)).toMatchObject([{ pid: process.pid, stopped: true }]);
    await file.giveUp();
    expect(await findRuns(folder, qmp)).toMatchObject([{ pid: undefined, stopped: true }]);
  });

  test("knows a monitor by whatever path leads to it", async () => {
    const { folder, qmp } = await made();
    await symlink(join(folder, ".."), join(folder, "..", "..", "link"));
    const runs = await findRuns(folder, join(folder, "..", "..", "link", "qmp.sock"));
    expect(runs).toMatchObject([{ sameMonitor: true }]);
    expect(await findRuns(folder, `${qmp}2`)).toMatchObject([{ sameMonitor: false }]);
  });

  test("a process that ended is none, though its number may be used again", async () => {
    const { folder, qmp, file } = await made();
    const child = spawn("sleep", ["60"]);
    await rewrite(file.path, { pid: child.pid });
    expect(await findRuns(folder, qmp)).toMatchObject([{ pid: undefined }]); // another one of that number
    const text = await readFile(`/proc/${child.pid!}/stat`, "utf8");
    await rewrite(file.path, { startTicks: Number(text.split(" ")[21]) });
    expect(await findRuns(folder, qmp)).toMatchObject([{ pid: child.pid }]);
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
    expect(await findRuns(folder, qmp)).toMatchObject([{ pid: undefined }]);
  });

  test.each(["", "{", "[]", '{"format":2}', `{"format":1,"token":"ffffffffffff"}`])(
    "one that cannot be read is none: %j",
    async (text) => {
      const { folder, qmp, file } = await made();
      await writeFile(file.path, text);
      expect(await findRuns(folder, qmp)).toEqual([]);
    },
  );

  test("goes with the run's images, and nothing else does", async () => {
    const { folder } = await made();
    const others = ["bk-ffffffffffff-0.qcow2", "bk-ffffffffffff.run", `bk-${TOKEN}.txt`, "disk.qcow2"];
    for (const name of [...others, `bk-${TOKEN}-0.qcow2`, `bk-${TOKEN}-12.qcow2`, `bk-${TOKEN}.run.new`]) {
      await writeFile(join(folder, name), "");
    }
    await removeRunFiles(folder, TOKEN);
    expect((await readdir(folder)).sort()).toEqual(others.sort());
    await removeRunFiles(folder, TOKEN);
    await removeRunFiles(join(folder, "nowhere"), TOKEN);
  });

  test("goes last: as long as it is there, there may be something to clear", async () => {
    const { folder, file } = await made();
    await mkdir(join(folder, `bk-${TOKEN}-0.qcow2`)); // that will not go
    await failure(removeRunFiles(folder, TOKEN));
    expect((await stat(file.path)).isFile()).toBe(true);
  });

  test("a folder that cannot be is refused", async () => {
    const folder = await temporaryFolder();
    await writeFile(join(folder, "file"), "");
    expect(await failure(RunFile.create(join(folder, "file", "scratch"), TOKEN, "/qmp"))).toMatchObject({
      kind: "usage",
      code: "E_SCRATCH_FOLDER",
    });
  });
});
