import { spawn } from "node:child_process";
import { join, resolve } from "node:path";
import { expect, onTestFinished, test, vi } from "vitest";
import { ServiceManager } from "../../../src/agent/notify.ts";
import { temporaryFolder } from "../../support/folder.ts";

const RECEIVER = resolve(import.meta.dirname, "../../support/datagrams.py");
const SOON = { timeout: 20_000, interval: 20 };

test("systemd hears that the service is up, alive, what it does, and that it goes down", async () => {
  const socket = join(await temporaryFolder(), "notify");
  const receiver = spawn("python3", [RECEIVER, socket], { stdio: ["pipe", "pipe", "inherit"] });
  onTestFinished(() => void receiver.kill("SIGKILL"));
  let heard = "";
  receiver.stdout.setEncoding("utf8").on("data", (text: string) => (heard += text));
  await vi.waitFor(() => expect(heard).toBe("ready\n"), SOON);
  const warnings: string[] = [];
  const environment = { PATH: process.env["PATH"], NOTIFY_SOCKET: socket, WATCHDOG_USEC: "200000" };
  const manager = new ServiceManager(environment, (message) => warnings.push(message));
  await manager.ready();
  await vi.waitFor(() => expect(heard.match(/WATCHDOG=1/g)?.length).toBeGreaterThanOrEqual(2), SOON);
  await manager.status("two\nlines");
  await manager.stopping();
  manager.end();
  expect(warnings).toEqual([]);
  const words = heard.split("\n").filter((line) => /^(READY|STATUS|STOPPING)=/.test(line));
  expect(words).toEqual(["READY=1", "STATUS=two lines", "STOPPING=1"]);
});

test("without systemd nothing is said; where nobody listens it is told once", async () => {
  const warnings: string[] = [];
  const silent = new ServiceManager({}, (message) => warnings.push(message));
  await silent.ready();
  await silent.stopping();
  expect(warnings).toEqual([]);
  const environment = { PATH: process.env["PATH"], NOTIFY_SOCKET: join(await temporaryFolder(), "none") };
  const deaf = new ServiceManager(environment, (message) => warnings.push(message));
  await deaf.ready();
  await deaf.stopping();
  deaf.end();
  expect(warnings).toEqual([expect.stringContaining("systemd cannot be told how the service is")]);
});
