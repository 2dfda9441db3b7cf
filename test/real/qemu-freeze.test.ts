import { fork } from "node:child_process";
import { once } from "node:events";
import { resolve } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import type { QemuSourceOptions } from "../../src/qemu/point-in-time.ts";
import {
  BackedUpVm,
  commit,
  generation,
  openRun,
  REPOSITORY,
  type OpenRun,
  type TestDisk,
  qemuFor,
} from "../support/backed-up-vm.ts";
import { FakeAgent } from "../support/fake-agent.ts";
import { failure } from "../support/outcomes.ts";
import type { Verdict } from "../support/qmp-proxy.ts";
import type { RunOrder } from "../support/qemu-run.ts";

const never = new AbortController().signal;
const MiB = 1024 * 1024;
const DISKS: readonly TestDisk[] = [
  { node: "drive0", size: 16 * MiB },
  { node: "drive1", size: 16 * MiB },
];
const FREEZE = "guest-fsfreeze-freeze";

async function withAgent(
  fleecing: "classic" | "filter" = "classic",
): Promise<{ tested: BackedUpVm; agent: FakeAgent }> {
  const tested = await BackedUpVm.start(DISKS, [], qemuFor(fleecing));
  const agent = await FakeAgent.start();
  await tested.hand.execute("cont", undefined, never);
  return { tested, agent };
}

function open(tested: BackedUpVm, agent: FakeAgent, more: Partial<QemuSourceOptions> = {}): Promise<OpenRun> {
  return openRun(tested, 1, [], { agent: agent.path, ...more }, { guarded: true });
}

describe.each(["classic", "filter"] as const)("%s fleecing", (fleecing) => {
  test("the guest stands frozen around the instant, and never while anything is exported", async () => {
    const { tested, agent } = await withAgent(fleecing);
    const frozenAt = new Map<string, boolean>();
    tested.proxy.decide = ({ execute }) => {
      frozenAt.set(execute, agent.frozen || frozenAt.get(execute) === true);
      return "pass";
    };
    const run = await open(tested, agent, { fleecing });
    expect(run.pit.consistency).toBe("filesystem");
    expect(run.pit.frozenMs).toBeGreaterThanOrEqual(run.pit.takeMs);
    await commit(run);
    const during = [...frozenAt].filter(([, frozen]) => frozen).map(([name]) => name);
    expect(during.sort()).toEqual(
      fleecing === "classic"
        ? ["transaction"]
        : ["blockdev-add", "cont", "qom-set", "query-status", "stop", "transaction"],
    );
    expect(frozenAt.get("block-export-add")).toBe(false);
    expect(agent.executed.filter((command) => command === FREEZE)).toHaveLength(1);
    expect(tested.warnings).toEqual([]);
  });

  test("whatever step fails, the guest is thawed, and before anything else is done", async () => {
    const { tested, agent } = await withAgent(fleecing);
    const before = await tested.picture();
    const run = await open(tested, agent, { fleecing });
    const commands = tested.proxy.commands.map(({ execute }) => execute);
    await run.pit.close("failed");
    await run.vm.close();
    const first = commands.findIndex((name) => name === "nbd-server-start");
    for (let number = first; number < commands.length; number++) {
      tested.proxy.reset();
      tested.proxy.decide = (command) => {
        if (command.number > number && command.execute !== "cont") expect(agent.frozen).toBe(false);
        return command.number === number ? "refuse" : "pass";
      };
      await failure(open(tested, agent, { fleecing })).catch((opened: unknown) => opened);
      expect(agent.frozen).toBe(false);
      tested.proxy.reset();
      expect(await tested.picture(), `${number}: ${commands[number]!}`).toEqual(before);
    }
  });
});

describe("a guest that cannot be frozen", () => {
  test.each(["a hook fails", "no agent runs"])("%s: crash consistent, with a warning", async (why) => {
    const { tested, agent } = await withAgent();
    if (why === "a hook fails") agent.freezeError = "fsfreeze hook has failed with status 1";
    else agent.running = false;
    const run = await open(tested, agent);
    expect(run.pit).toMatchObject({ consistency: "crash", frozenMs: undefined });
    expect(tested.warnings).toEqual([expect.stringMatching(/not frozen.*crash consistent/)]);
    await commit(run);
  });

  test("required: nothing is made", async () => {
    const { tested, agent } = await withAgent();
    const before = await tested.picture();
    agent.freezeError = "fsfreeze hook has failed with status 1";
    expect(await failure(open(tested, agent, { freeze: "require" }))).toMatchObject({
      kind: "source",
      message: expect.stringContaining("fsfreeze hook has failed") as string,
    });
    expect(await tested.picture()).toEqual(before);
  });

  test("required without an agent: refused at once", async () => {
    const tested = await BackedUpVm.start(DISKS);
    expect(await failure(openRun(tested, 1, [], { freeze: "require" }))).toMatchObject({
      kind: "usage",
      code: "E_FREEZE_AGENT",
    });
  });

  test("not asked for: the agent is not spoken to", async () => {
    const { tested, agent } = await withAgent();
    const run = await open(tested, agent, { freeze: "off" });
    expect(run.pit).toMatchObject({ consistency: "crash", frozenMs: undefined });
    await commit(run);
    expect(agent.clients).toBe(0);
    expect(tested.warnings).toEqual([]);
  });
});

describe("the budget runs out before the instant", () => {
  test.each(["auto", "require"] as const)("freeze %s", async (freeze) => {
    const { tested, agent } = await withAgent();
    const before = await tested.picture();
    tested.proxy.decide = async ({ execute }): Promise<Verdict> => {
      if (execute === "transaction" && agent.frozen) await agent.until(({ frozen }) => !frozen);
      return "pass";
    };
    const opening = open(tested, agent, { freeze, freezeBudgetMs: 200 });
    if (freeze === "require") {
      expect(await failure(opening)).toMatchObject({ kind: "source", code: "E_FREEZE_OVERRUN" });
      expect(await tested.picture()).toEqual(before);
      return;
    }
    const run = await opening;
    expect(run.pit.consistency).toBe("crash");
    expect(tested.warnings).toEqual([expect.stringMatching(/thawed before.*crash consistent/)]);
    await commit(run);
  });
});

test.each(["classic", "filter"] as const)(
  "killed while the guest stands frozen: thawed, and the VM runs (%s)",
  async (fleecing) => {
    const { tested, agent } = await withAgent(fleecing);
    const order: RunOrder = {
      options: tested.options({ agent: agent.path, fleecing }),
      repository: REPOSITORY,
      generation: generation(1),
      listed: [],
      guarded: true,
    };
    const program = resolve(import.meta.dirname, "../support/qemu-run.ts");
    const child = fork(program, [JSON.stringify(order)], {
      execArgv: [],
      stdio: ["ignore", "ignore", "inherit", "ipc"],
    });
    onTestFinished(() => void child.kill("SIGKILL"));
    const ended = once(child, "exit");
    tested.proxy.answered = async ({ execute }) => {
      if (execute !== "transaction" || child.signalCode !== null) return;
      expect(agent.frozen).toBe(true);
      if (fleecing === "filter") expect((await tested.survey()).status).toBe("paused");
      child.kill("SIGKILL");
      await ended;
    };
    await ended;
    await agent.until(({ frozen }) => !frozen);
    await expect.poll(async () => (await tested.survey()).status, { timeout: 20_000 }).toBe("running");
    await expect
      .poll(async () => (await tested.survey()).nodes.filter(({ name }) => name.startsWith("bk-")), {
        timeout: 20_000,
      })
      .toEqual([]);
  },
);
