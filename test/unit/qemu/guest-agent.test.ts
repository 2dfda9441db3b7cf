import { describe, expect, test } from "vitest";
import { GuestAgent } from "../../../src/qemu/guest-agent.ts";
import { FakeAgent } from "../../support/fake-agent.ts";
import { temporaryFolder } from "../../support/folder.ts";
import { startLineServer } from "../../support/line-server.ts";
import { failure } from "../../support/outcomes.ts";

const never = new AbortController().signal;
const SYNC = "guest-sync-delimited";
const FREEZE = "guest-fsfreeze-freeze";
const THAW = "guest-fsfreeze-thaw";

describe("connect", () => {
  test("syncs first, the error line about the delimiter and stale answers skipped", async () => {
    const fake = await FakeAgent.start();
    const agent = await GuestAgent.connect(fake.path, never);
    expect(fake.executed).toEqual([SYNC]);
    expect(await agent.status(never)).toBe("thawed");
    await agent.close();
  });

  test("an answer to somebody else's sync is not taken for ours", async () => {
    const peer = await startLineServer({
      line: (line, socket) => {
        const text = line.subarray(line.lastIndexOf(0xff) + 1).toString();
        const { execute, arguments: args } = JSON.parse(text) as {
          execute: string;
          arguments: { id: number };
        };
        const answer = JSON.stringify({ return: execute === SYNC ? args.id : "frozen" });
        if (execute === SYNC) {
          const stale = '{"return": {"stale": 1}}\n\xff{"return": 4711}\nhalf an ans\xff{"retu\xff';
          socket.write(Buffer.from(stale, "latin1"));
        }
        socket.write(`${answer}\n`);
      },
    });
    const agent = await GuestAgent.connect(peer.path, never);
    expect(peer.lines[0]![0]).toBe(0xff);
    expect(await agent.status(never)).toBe("frozen");
    await agent.close();
  });

  test.each([
    ["to somebody else's sync", "\xff", 4711],
    ["without the delimiter", "", undefined],
  ])("an answer %s is none", async (_, delimiter, id) => {
    const peer = await startLineServer({
      line: (line, socket) => {
        const text = line.subarray(line.lastIndexOf(0xff) + 1).toString();
        const sync = JSON.parse(text) as { arguments: { id: number } };
        const answer = JSON.stringify({ return: id ?? sync.arguments.id });
        socket.write(Buffer.from(`${delimiter}${answer}\n`, "latin1"));
      },
    });
    const error = await failure(GuestAgent.connect(peer.path, never, { syncMs: 50 }));
    expect(error).toMatchObject({ code: "E_AGENT_SILENT" });
  });

  test("nobody in the guest: silent, and nothing but a sync was ever sent", async () => {
    const fake = await FakeAgent.start();
    fake.running = false;
    const error = await failure(GuestAgent.connect(fake.path, never, { syncMs: 30 }));
    expect(error).toMatchObject({ kind: "source", code: "E_AGENT_SILENT" });
    fake.running = true;
    await fake.until(({ executed }) => executed.length > 0);
    expect(fake.executed).toEqual([SYNC]);
  });

  test("another client is served: silent until that one leaves", async () => {
    const fake = await FakeAgent.start();
    const first = await GuestAgent.connect(fake.path, never);
    const brief = failure(GuestAgent.connect(fake.path, never, { syncMs: 30 }));
    expect(await brief).toMatchObject({ code: "E_AGENT_SILENT" });
    const second = GuestAgent.connect(fake.path, never);
    await first.close();
    expect(await (await second).status(never)).toBe("thawed");
  });

  test("no socket, an abort, a hang-up", async () => {
    const none = `${await temporaryFolder()}/none`;
    const error = await failure(GuestAgent.connect(none, never));
    expect(error).toMatchObject({ kind: "source", code: "E_AGENT_CONNECT" });
    const fake = await FakeAgent.start();
    fake.running = false;
    const reason = new Error("the user left");
    expect(await failure(GuestAgent.connect(fake.path, AbortSignal.abort(reason)))).toBe(reason);
    const run = new AbortController();
    const waiting = failure(GuestAgent.connect(fake.path, run.signal));
    await fake.until(({ clients }) => clients === 1);
    run.abort(reason);
    expect(await waiting).toBe(reason);
    const gone = failure(GuestAgent.connect(fake.path, never));
    await fake.until(({ clients }) => clients === 2);
    fake.hangUp();
    expect(await gone).toMatchObject({ code: "E_AGENT_GONE" });
  });
});

describe("freeze and thaw", () => {
  test("freeze, status, thaw, each with its number; a sync before each freeze", async () => {
    const fake = await FakeAgent.start();
    const agent = await GuestAgent.connect(fake.path, never);
    expect(await agent.freeze(never)).toBe(2);
    expect(await agent.status(never)).toBe("frozen");
    expect(await agent.thaw(never)).toBe(2);
    expect(await agent.thaw(never)).toBe(0);
    expect(await agent.freeze(never)).toBe(2);
    expect(await agent.thaw(never)).toBe(2);
    const [status, commands] = ["guest-fsfreeze-status", fake.executed];
    expect(commands).toEqual([SYNC, SYNC, FREEZE, status, THAW, THAW, SYNC, FREEZE, THAW]);
  });

  test("a failing hook: its words, and nothing stays frozen", async () => {
    const fake = await FakeAgent.start();
    const agent = await GuestAgent.connect(fake.path, never);
    fake.freezeError = "fsfreeze hook has failed with status 1";
    expect(await failure(agent.freeze(never))).toMatchObject({
      code: "E_FREEZE",
      message: expect.stringContaining("fsfreeze hook has failed with status 1") as string,
    });
    expect(fake.executed.at(-1)).toBe(THAW);
    expect(await agent.freeze(never)).toBe(2);
  });

  test("a hook that fails whenever it is asked: thawed is thawed", async () => {
    const fake = await FakeAgent.start();
    const agent = await GuestAgent.connect(fake.path, never);
    fake.thawError = "fsfreeze hook has failed with status 1";
    expect(await agent.freeze(never)).toBe(2);
    expect(await agent.thaw(never)).toBe(0);
    fake.freezeError = "fsfreeze hook has failed with status 2";
    const error = await failure(agent.freeze(never));
    expect(error).toMatchObject({ code: "E_FREEZE", message: expect.stringContaining("status 2") as string });
    expect(fake.executed.slice(-2)).toEqual([THAW, "guest-fsfreeze-status"]);
  });

  test("a guest that is frozen already refuses, and is thawed", async () => {
    const fake = await FakeAgent.start();
    fake.frozen = true;
    const agent = await GuestAgent.connect(fake.path, never);
    const error = await failure(agent.freeze(never));
    expect(error).toMatchObject({ code: "E_FREEZE" });
    expect(error).toHaveProperty("message", expect.stringContaining("frozen state"));
    expect(fake.frozen).toBe(false);
  });

  test("the agent died since: no freeze is sent that could be done later", async () => {
    const fake = await FakeAgent.start();
    const agent = await GuestAgent.connect(fake.path, never, { syncMs: 500 });
    fake.running = false;
    expect(await failure(agent.freeze(never))).toMatchObject({ kind: "source", code: "E_FREEZE" });
    await agent.close();
    fake.running = true;
    await fake.until(({ executed }) => executed.length > 1);
    expect(fake.executed).toEqual([SYNC, SYNC]);
    expect(fake.frozen).toBe(false);
  });

  test("a freeze that takes too long and answers late is taken back; the channel goes on", async () => {
    const fake = await FakeAgent.start();
    const agent = await GuestAgent.connect(fake.path, never, { freezeMs: 30 });
    const release = fake.hold(FREEZE, "after");
    const freezing = failure(agent.freeze(never));
    await fake.until(({ frozen }) => frozen);
    setTimeout(release, 60);
    const error = await freezing;
    expect(error).toMatchObject({ code: "E_FREEZE" });
    expect(error).toHaveProperty("message", expect.stringContaining("more than 30 ms"));
    expect(fake.frozen).toBe(false);
    expect(fake.executed).toEqual([SYNC, SYNC, FREEZE, SYNC, THAW]);
    expect(await agent.status(never)).toBe("thawed");
    expect(await agent.freeze(never)).toBe(2);
  });

  test("an agent that hangs in the freeze: the caller knows that it may be frozen, and the thaw waits behind it", async () => {
    const fake = await FakeAgent.start();
    const timing = { freezeMs: 20, syncMs: 500, commandMs: 20 };
    const agent = await GuestAgent.connect(fake.path, never, timing);
    const release = fake.hold(FREEZE);
    expect(await failure(agent.freeze(never))).toMatchObject({ kind: "source", code: "E_FROZEN" });
    await agent.close();
    release();
    await fake.until(({ executed }) => executed.includes(THAW));
    expect(fake.executed).toEqual([SYNC, SYNC, FREEZE, SYNC, THAW]);
    expect(fake.frozen).toBe(false);
  });

  test("an abort while it freezes: taken back before the reason is thrown", async () => {
    const fake = await FakeAgent.start();
    const agent = await GuestAgent.connect(fake.path, never);
    const release = fake.hold(FREEZE, "after");
    const run = new AbortController();
    const freezing = failure(agent.freeze(run.signal));
    await fake.until(({ frozen }) => frozen);
    run.abort(new Error("enough"));
    release();
    expect(await freezing).toBe(run.signal.reason);
    expect(fake.frozen).toBe(false);
    expect(await failure(agent.freeze(run.signal))).toBe(run.signal.reason);
    expect(fake.executed.filter((command) => command === FREEZE)).toHaveLength(1);
  });

  test("the connection breaks after the freeze was sent: it may be frozen, and a new client thaws", async () => {
    const fake = await FakeAgent.start();
    fake.hangUpAt = FREEZE;
    const agent = await GuestAgent.connect(fake.path, never);
    expect(await failure(agent.freeze(never))).toMatchObject({ code: "E_FROZEN" });
    expect(agent.gone).toBe(true);
    const next = await GuestAgent.connect(fake.path, never);
    expect(await next.status(never)).toBe("frozen");
    expect(await next.thaw(never)).toBe(2);
  });

  test("an answer that is none, or not a number, is not a frozen guest", async () => {
    const fake = await FakeAgent.start();
    const agent = await GuestAgent.connect(fake.path, never);
    fake.answerInstead = '{"return": {}}\n';
    expect(await failure(agent.freeze(never))).toMatchObject({ code: "E_FREEZE" });
    expect(fake.frozen).toBe(false);
    fake.answerInstead = "hello\n";
    expect(await failure(agent.freeze(never))).toMatchObject({ code: "E_FROZEN" });
    expect(agent.gone).toBe(true);
  });
});

describe("being in sync", () => {
  test("a command that timed out is followed by a sync, so its late answer belongs to nobody", async () => {
    const fake = await FakeAgent.start();
    const agent = await GuestAgent.connect(fake.path, never, { commandMs: 500 });
    const release = fake.hold("guest-fsfreeze-status");
    expect(await failure(agent.status(never))).toMatchObject({ code: "E_AGENT_SILENT" });
    const thawing = agent.thaw(never);
    release();
    expect(await thawing).toBe(0);
    expect(fake.executed).toEqual([SYNC, "guest-fsfreeze-status", SYNC, THAW]);
  });

  test("what comes unasked costs a sync, not a wrong answer", async () => {
    const fake = await FakeAgent.start();
    const agent = await GuestAgent.connect(fake.path, never);
    fake.say('{"return": "frozen"}\n');
    const syncs = async (): Promise<number> => {
      expect(await agent.status(never)).toBe("thawed");
      return fake.executed.filter((command) => command === SYNC).length;
    };
    await expect.poll(syncs).toBe(2);
  });

  test("a second answer to one command is not the next one's", async () => {
    const fake = await FakeAgent.start();
    const agent = await GuestAgent.connect(fake.path, never);
    fake.answerInstead = '{"return": "frozen"}\n{"return": "frozen"}\n';
    expect(await agent.status(never)).toBe("frozen");
    expect(await agent.status(never)).toBe("thawed");
  });

  test("a thaw behind a failed freeze that was not answered in time", async () => {
    const fake = await FakeAgent.start();
    const agent = await GuestAgent.connect(fake.path, never, { syncMs: 500, commandMs: 20 });
    fake.freezeError = "no";
    const release = fake.hold(THAW);
    expect(await failure(agent.freeze(never))).toMatchObject({ code: "E_FROZEN" });
    release();
    await fake.until(({ executed }) => executed.at(-1) === THAW);
    expect(await agent.status(never)).toBe("thawed");
  });

  test("an abort while it waits for its turn, or for its answer", async () => {
    const fake = await FakeAgent.start();
    const agent = await GuestAgent.connect(fake.path, never);
    const release = fake.hold(THAW);
    const [first, second] = [new AbortController(), new AbortController()];
    const thawing = failure(agent.thaw(first.signal));
    const waiting = failure(agent.status(second.signal));
    second.abort(new Error("second"));
    expect(await waiting).toBe(second.signal.reason);
    first.abort(new Error("first"));
    expect(await thawing).toBe(first.signal.reason);
    release();
    expect(await agent.status(never)).toBe("thawed");
  });

  test("more of a line than an agent ever says ends the connection", async () => {
    const fake = await FakeAgent.start();
    const agent = await GuestAgent.connect(fake.path, never);
    const release = fake.hold("guest-fsfreeze-status");
    const waiting = failure(agent.status(never));
    for (let sent = 0; sent < 5; sent++) fake.say(Buffer.alloc(1024 * 1024, "x"));
    expect(await waiting).toMatchObject({ code: "E_AGENT_PROTOCOL" });
    release();
  });
});
