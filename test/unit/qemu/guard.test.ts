import { fork, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { Guard, type GuardOptions } from "../../../src/qemu/guard/guard.ts";
import { GuestAgent } from "../../../src/qemu/guest-agent.ts";
import { QmpClient } from "../../../src/qemu/qmp/client.ts";
import { FakeAgent } from "../../support/fake-agent.ts";
import { startFakeMonitor } from "../../support/fake-monitor.ts";
import { temporaryFolder } from "../../support/folder.ts";
import { failure } from "../../support/outcomes.ts";
import { startQemuVm, type QemuVm } from "../../support/qemu-vm.ts";

const never = new AbortController().signal;
const PARENT = resolve(import.meta.dirname, "../../support/guard-parent.ts");
const TOKEN = "0123456789ab";
const FREEZE = "guest-fsfreeze-freeze";
const THAW = "guest-fsfreeze-thaw";

/** Nothing is waited for so long; what a test shows must not come from a budget that ran out. */
const LONG_MS = 3600_000;

async function optionsOf(more: Partial<GuardOptions>): Promise<GuardOptions> {
  const scratchDir = await temporaryFolder();
  const qmp = join(scratchDir, "no-monitor.sock");
  return { qmp, token: TOKEN, scratchDir, freezeBudgetMs: LONG_MS, silenceMs: LONG_MS, ...more };
}

async function guardOf(more: Partial<GuardOptions>): Promise<{ guard: Guard; pid: number }> {
  const before = await childrenOf(process.pid);
  const guard = await Guard.start(await optionsOf(more), never);
  onTestFinished(() => guard.finish());
  const after = await childrenOf(process.pid);
  return { guard, pid: after.find((pid) => !before.includes(pid))! };
}

interface Parent {
  readonly process: ChildProcess;
  /** The guard's pid, when the program has done its steps. */
  readonly ready: Promise<number>;
}

/** Starts a program that has a guard and does these steps. */
async function launchParent(
  more: Partial<GuardOptions>,
  steps: readonly string[],
  folder: "src" | "dist" = "src",
): Promise<Parent> {
  const options = JSON.stringify(await optionsOf(more));
  const parent = fork(PARENT, [folder, options, ...steps], { execArgv: [], detached: true });
  onTestFinished(() => void parent.kill("SIGKILL"));
  const ready = new Promise<number>((resolve, reject) => {
    let guard: number | undefined;
    parent.on("message", (step) => {
      void childrenOf(parent.pid!).then(([pid]) => {
        guard ??= pid;
        if (step === (steps.at(-1) ?? "start")) resolve(guard!);
      }, reject);
    });
    parent.on("exit", () => reject(new Error("the parent ended too early")));
  });
  ready.catch(() => undefined); // not every test waits
  return { process: parent, ready };
}

async function parentOf(
  ...launch: Parameters<typeof launchParent>
): Promise<{ parent: ChildProcess; guard: number }> {
  const { process: parent, ready } = await launchParent(...launch);
  return { parent, guard: await ready };
}

async function childrenOf(pid: number): Promise<readonly number[]> {
  const text = await readFile(`/proc/${pid}/task/${pid}/children`, "utf8");
  return text.split(" ").filter(Boolean).map(Number);
}

/** "" for a process that has ended, waited for by somebody or not. */
async function stateOf(pid: number): Promise<string> {
  const text = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  const state = text.slice(text.lastIndexOf(")") + 2)[0] ?? "";
  return state === "Z" ? "" : state;
}

/** Nothing else happens in this process. */
function standStill(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

async function gone(pid: number): Promise<void> {
  await expect.poll(() => stateOf(pid), { timeout: 30_000 }).toBe("");
}

describe("a parent and its guard", () => {
  test("freeze and thaw; the agent's socket is free afterwards, and the guard goes when told", async () => {
    const agent = await FakeAgent.start();
    const monitor = await startFakeMonitor();
    const { guard, pid } = await guardOf({ agent: agent.path, qmp: monitor.path });
    expect(guard.foundFrozen).toBe(false);
    expect(guard.agentError).toBeUndefined();
    expect(await guard.thaw()).toEqual({ frozenMs: 0, overrun: false });
    for (let round = 0; round < 2; round++) {
      expect(await guard.freeze(never)).toBe(2);
      expect(agent.frozen).toBe(true);
      const thawed = await guard.thaw();
      expect(agent.frozen).toBe(false);
      expect(thawed.overrun).toBe(false);
      expect(thawed.frozenMs).toBeGreaterThan(0);
      expect(await guard.thaw()).toEqual(thawed);
    }
    const other = await GuestAgent.connect(agent.path, never);
    await other.close();
    await guard.finish();
    await guard.finish();
    expect(await stateOf(pid)).toBe("");
    expect(monitor.connections).toBe(0);
  });

  test("finish thaws what somebody forgot", async () => {
    const agent = await FakeAgent.start();
    const { guard } = await guardOf({ agent: agent.path });
    await guard.freeze(never);
    await guard.finish();
    expect(agent.frozen).toBe(false);
  });

  test("a guest found frozen is thawed, and said so", async () => {
    const agent = await FakeAgent.start();
    agent.frozen = true;
    const { guard } = await guardOf({ agent: agent.path });
    expect(guard.foundFrozen).toBe(true);
    expect(agent.frozen).toBe(false);
  });

  test("without an agent there is a guard, but no freeze", async () => {
    const none = await guardOf({});
    expect(none.guard.agentError).toBeUndefined();
    expect(await failure(none.guard.freeze(never))).toMatchObject({ kind: "source", code: "E_FREEZE" });
    const missing = await guardOf({ agent: `${await temporaryFolder()}/none` });
    expect(missing.guard.agentError).toMatchObject({ kind: "source", code: "E_AGENT_CONNECT" });
    expect(await failure(missing.guard.freeze(never))).toMatchObject({ code: "E_AGENT_CONNECT" });
    expect(await missing.guard.thaw()).toMatchObject({ overrun: false });
  });

  test("a failing hook: the agent's words", async () => {
    const agent = await FakeAgent.start();
    const { guard } = await guardOf({ agent: agent.path });
    agent.freezeError = "fsfreeze hook has failed with status 1";
    const error = await failure(guard.freeze(never));
    expect(error).toMatchObject({ kind: "source", code: "E_FREEZE" });
    expect(error).toHaveProperty("message", expect.stringContaining("hook has failed with status 1"));
    expect(agent.frozen).toBe(false);
    expect(await guard.freeze(never)).toBe(2);
  });

  test("an abort: of the start, of a freeze under way", async () => {
    const agent = await FakeAgent.start();
    const run = new AbortController();
    const starting = failure(Guard.start(await optionsOf({ agent: agent.path }), run.signal));
    run.abort(new Error("enough"));
    expect(await starting).toBe(run.signal.reason);
    const { guard } = await guardOf({ agent: agent.path });
    expect(await failure(guard.freeze(run.signal))).toBe(run.signal.reason);
    const second = new AbortController();
    const release = agent.hold(FREEZE, "after");
    const freezing = failure(guard.freeze(second.signal));
    await agent.until(({ frozen }) => frozen);
    second.abort(new Error("enough of this"));
    await agent.until(({ queued }) => queued === 2); // a sync and the thaw are sent, whatever becomes of the freeze
    release();
    expect(await freezing).toBe(second.signal.reason);
    expect(agent.frozen).toBe(false);
  });

  test("an abort while the guard's answer is on its way: thawed before the reason is thrown", async () => {
    const agent = await FakeAgent.start();
    const { guard } = await guardOf({ agent: agent.path });
    const run = new AbortController();
    const freezing = failure(guard.freeze(run.signal));
    const release = agent.hold(THAW);
    await agent.until(({ executed }) => executed.at(-1) === FREEZE);
    standStill(500); // the guard has answered, and this process has not looked
    run.abort(new Error("enough"));
    await agent.until(({ holding }) => holding === THAW);
    setTimeout(release, 100);
    expect(await freezing).toBe(run.signal.reason);
    expect(agent.frozen).toBe(false);
  });
});

describe("the budget", () => {
  test("runs out before the thaw is asked for: thawed all the same, and reported", async () => {
    const agent = await FakeAgent.start();
    const { guard } = await guardOf({ agent: agent.path, freezeBudgetMs: 500 });
    expect(await guard.freeze(never)).toBe(2);
    await agent.until(({ frozen }) => !frozen);
    const thawed = await guard.thaw();
    expect(thawed.overrun).toBe(true);
    expect(thawed.frozenMs).toBeGreaterThanOrEqual(500);
    expect(await guard.freeze(never)).toBe(2);
    await agent.until(({ frozen }) => !frozen);
  });

  test("runs out while it freezes: not frozen", async () => {
    const agent = await FakeAgent.start();
    const { guard } = await guardOf({ agent: agent.path, freezeBudgetMs: 500 });
    const release = agent.hold(FREEZE, "after");
    const freezing = failure(guard.freeze(never));
    await agent.until(({ frozen }) => frozen);
    setTimeout(release, 1000);
    const error = await freezing;
    expect(error).toMatchObject({ kind: "source", code: "E_FREEZE" });
    expect(error).toHaveProperty("message", expect.stringContaining("500 ms"));
    expect(agent.frozen).toBe(false);
  });

  test("QEMU ends while its guest is frozen: there is nothing left to thaw", async () => {
    const agent = await FakeAgent.start();
    const { guard } = await guardOf({ agent: agent.path });
    await guard.freeze(never);
    agent.stop();
    expect(await guard.thaw()).toMatchObject({ overrun: false });
  });

  test("an agent that comes late, over a new connection, is thawed in the end", async () => {
    const agent = await FakeAgent.start();
    const { guard } = await guardOf({ agent: agent.path });
    await guard.freeze(never);
    agent.hangUpAt = THAW;
    agent.running = false;
    const thawing = guard.thaw();
    agent.hangUp();
    await agent.until(({ clients }) => clients === 2);
    agent.running = true;
    await thawing;
    expect(agent.frozen).toBe(false);
  });
});

describe("the guard dies", () => {
  test("while the guest is frozen: this process thaws", async () => {
    const agent = await FakeAgent.start();
    const { guard, pid } = await guardOf({ agent: agent.path });
    await guard.freeze(never);
    process.kill(pid, "SIGKILL");
    const error = await failure(guard.died);
    expect(error).toMatchObject({ kind: "source", code: "E_GUARD" });
    expect(error).toHaveProperty("message", expect.stringMatching(/SIGKILL.*was thawed/));
    expect(agent.frozen).toBe(false);
    expect(await guard.thaw()).toEqual({ frozenMs: 0, overrun: false });
    expect(await failure(guard.freeze(never))).toBe(error);
  });

  test("while a thaw is asked for", async () => {
    const agent = await FakeAgent.start();
    const { guard, pid } = await guardOf({ agent: agent.path });
    await guard.freeze(never);
    const release = agent.hold(THAW);
    const thawing = failure(guard.thaw());
    await agent.until(({ holding }) => holding === THAW);
    process.kill(pid, "SIGKILL");
    release();
    expect(await thawing).toMatchObject({ code: "E_GUARD" });
    expect(agent.frozen).toBe(false);
  });

  test("hangs while the guest is frozen: it is ended, and this process thaws", async () => {
    const agent = await FakeAgent.start();
    const { guard, pid } = await guardOf({ agent: agent.path });
    await guard.freeze(never);
    process.kill(pid, "SIGSTOP");
    expect(await failure(guard.thaw())).toMatchObject({ code: "E_GUARD" });
    expect(agent.frozen).toBe(false);
    expect(await stateOf(pid)).toBe("");
  });

  test("while nothing is frozen: said, nothing else", async () => {
    const agent = await FakeAgent.start();
    const { guard, pid } = await guardOf({ agent: agent.path });
    process.kill(pid, "SIGKILL");
    expect(await failure(guard.died)).toMatchObject({ code: "E_GUARD" });
    expect(agent.executed).not.toContain(THAW);
    await guard.finish();
  });

  test("signals that end others do not end it", async () => {
    const agent = await FakeAgent.start();
    const { guard, pid } = await guardOf({ agent: agent.path });
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.kill(pid, signal);
    expect(await guard.freeze(never)).toBe(2);
    await guard.thaw();
  });
});

describe("the parent dies", () => {
  test.each(["src", "dist"] as const)(
    "by SIGKILL while the guest is frozen: thawed at once (%s)",
    async (folder) => {
      const agent = await FakeAgent.start();
      const { parent, guard } = await parentOf({ agent: agent.path }, ["freeze"], folder);
      expect(agent.frozen).toBe(true);
      parent.kill("SIGKILL");
      await agent.until(({ frozen }) => !frozen);
      await gone(guard);
    },
  );

  test("by SIGKILL in the middle of a freeze", async () => {
    const agent = await FakeAgent.start();
    const release = agent.hold(FREEZE, "after");
    const { process: parent } = await launchParent({ agent: agent.path }, ["freeze"]);
    await agent.until(({ frozen }) => frozen);
    const [guard] = await childrenOf(parent.pid!);
    parent.kill("SIGKILL");
    release();
    await agent.until(({ frozen }) => !frozen);
    await gone(guard!);
  });

  test("by Ctrl-C, which goes to its whole process group: the guard does not hear it", async () => {
    const agent = await FakeAgent.start();
    const { parent, guard } = await parentOf({ agent: agent.path }, ["freeze"]);
    process.kill(-parent.pid!, "SIGINT");
    await once(parent, "exit");
    await agent.until(({ frozen }) => !frozen);
    await gone(guard);
  });

  test("stopped by SIGSTOP while the guest is frozen: thawed at the budget, and not ended", async () => {
    const agent = await FakeAgent.start();
    const { parent } = await parentOf({ agent: agent.path, freezeBudgetMs: 1000 }, ["freeze"]);
    parent.kill("SIGSTOP");
    await agent.until(({ frozen }) => !frozen);
    expect(await stateOf(parent.pid!)).toBe("T");
  });
});

describe("what the parent left in QEMU", () => {
  /** A VM with a node that a run of our token made, and one of somebody else. */
  async function vmWithLeftovers(): Promise<QemuVm> {
    const vm = await startQemuVm();
    onTestFinished(() => vm.stop());
    const client = await QmpClient.connect(vm.qmp, never);
    for (const name of [`bk-${TOKEN}-s0`, "bk-ffffffffffff-s0", "other"]) {
      await client.execute(
        "blockdev-add",
        { driver: "null-co", "node-name": name, "read-zeroes": true },
        never,
      );
    }
    await client.close();
    return vm;
  }

  async function nodesOf(vm: QemuVm): Promise<string[]> {
    const client = await QmpClient.connect(vm.qmp, never);
    const nodes = (await client.execute("query-named-block-nodes", { flat: true }, never)) as object[];
    await client.close();
    return nodes.map((node) => (node as { "node-name": string })["node-name"]).sort();
  }

  test("is taken down when it was killed, and nobody else's", async () => {
    const vm = await vmWithLeftovers();
    const { parent, guard } = await parentOf({ qmp: vm.qmp }, ["hold the monitor"]);
    parent.kill("SIGKILL");
    await gone(guard);
    expect(await nodesOf(vm)).toEqual(["bk-ffffffffffff-s0", "other"]);
  });

  test.each(["stopped", "blocked"])("is taken down when it hangs (%s): it is ended first", async (how) => {
    const agent = await FakeAgent.start();
    const vm = await vmWithLeftovers();
    const steps = ["hold the monitor", "freeze"];
    const { parent, guard } = await parentOf({ qmp: vm.qmp, agent: agent.path, silenceMs: 1500 }, steps);
    const exited = once(parent, "exit");
    if (how === "stopped") parent.kill("SIGSTOP");
    else parent.send("block");
    expect((await exited)[1]).toBe("SIGKILL");
    await gone(guard);
    expect(agent.frozen).toBe(false);
    expect(await nodesOf(vm)).toEqual(["bk-ffffffffffff-s0", "other"]);
  });

  test("stays when it finished: it has taken down what it wanted to", async () => {
    const vm = await vmWithLeftovers();
    const { parent, guard } = await parentOf({ qmp: vm.qmp }, ["finish"]);
    await gone(guard);
    parent.kill("SIGKILL");
    expect(await nodesOf(vm)).toContain(`bk-${TOKEN}-s0`);
  });

  test("a parent that works, but says nothing else, is not silent", async () => {
    const { parent, guard } = await parentOf({ silenceMs: 1500 }, []);
    await new Promise((done) => setTimeout(done, 4000));
    expect(await stateOf(parent.pid!)).not.toBe("");
    parent.kill("SIGKILL");
    await gone(guard);
  });

  test("QEMU is gone as well: the guard goes", async () => {
    const { parent, guard } = await parentOf({}, []);
    parent.kill("SIGKILL");
    await gone(guard);
  });
});
