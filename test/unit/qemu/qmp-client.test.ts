import { describe, expect, test } from "vitest";
import { hasCode } from "../../../src/errors.ts";
import { QmpClient } from "../../../src/qemu/qmp/client.ts";
import { EVENTS_MAX } from "../../../src/qemu/qmp/events.ts";
import { failure } from "../../support/outcomes.ts";
import { GREETING, startFakeMonitor } from "../../support/fake-monitor.ts";
import { temporaryFolder } from "../../support/folder.ts";
import { startLineServer } from "../../support/line-server.ts";

const never = new AbortController().signal;
const ALL = (): boolean => true;

describe("connect", () => {
  test("greets, negotiates, knows the version", async () => {
    const monitor = await startFakeMonitor();
    const client = await QmpClient.connect(monitor.path, never);
    expect(client.version).toEqual({ major: 7, minor: 2, micro: 22 });
    expect(JSON.parse(monitor.lines[0]!.toString())).toEqual({ execute: "qmp_capabilities", id: 1 });
    await client.close();
  });

  test("a monitor without a greeting is busy, and we are off its queue", async () => {
    const monitor = await startFakeMonitor({ greeting: "" });
    const error = await failure(QmpClient.connect(monitor.path, never, { greetingMs: 30 }));
    expect(error).toMatchObject({ kind: "locked", code: "E_QMP_BUSY" });
    expect(error).toHaveProperty("message", expect.stringContaining(monitor.path));
    expect(monitor.lines).toEqual([]);
  });

  test("no socket, no listener, no socket at all", async () => {
    const folder = await temporaryFolder();
    for (const path of [`${folder}/none`, folder, `${folder}/${"x".repeat(120)}`]) {
      const error = await failure(QmpClient.connect(path, never));
      expect(error, path).toMatchObject({ kind: "source", code: "E_QMP_CONNECT" });
      expect(error).toHaveProperty("message", expect.stringContaining(path));
    }
  });

  test("an abort while the greeting is awaited is the reason thrown", async () => {
    const monitor = await startLineServer({ connected: () => run.abort(reason) });
    const run = new AbortController();
    const reason = new Error("the user left");
    expect(await failure(QmpClient.connect(monitor.path, run.signal))).toBe(reason);
    expect(await failure(QmpClient.connect(monitor.path, run.signal))).toBe(reason);
    expect(monitor.connections).toBe(1);
  });

  test.each([
    ["garbage", "SSH-2.0-OpenSSH_9.2p1\r\n", "SSH-2.0"],
    ["JSON that is no greeting", '{"hello": 1}\n', "hello"],
    ["JSON that is no object", "null\n", "null"],
    ["a greeting without a version", '{"QMP": {"capabilities": []}}\n', "capabilities"],
    ["an answer to nothing", '{"return": {}, "id": 1}\n', "nobody gave"],
  ])("%s is not a monitor", async (_, greeting, named) => {
    const monitor = await startFakeMonitor({ greeting });
    const error = await failure(QmpClient.connect(monitor.path, never));
    expect(error).toMatchObject({ kind: "source", code: "E_QMP_PROTOCOL" });
    expect(error).toHaveProperty("message", expect.stringContaining(named));
  });

  test("one that hangs up in place of a greeting, or of the negotiation's answer", async () => {
    const first = await startLineServer({ connected: (socket) => socket.end() });
    expect(await failure(QmpClient.connect(first.path, never))).toMatchObject({ code: "E_QMP_GONE" });
    const second = await startLineServer({
      connected: (socket) => void socket.write(GREETING),
      line: (_, socket) => socket.destroy(),
    });
    expect(await failure(QmpClient.connect(second.path, never))).toMatchObject({ code: "E_QMP_GONE" });
  });

  test("one that refuses the negotiation, or never answers it", async () => {
    const refuses = await startFakeMonitor({
      capabilities: (id) => `{"error": {"class": "GenericError", "desc": "no"}, "id": ${id}}\n`,
    });
    expect(await failure(QmpClient.connect(refuses.path, never))).toMatchObject({ code: "E_QMP_COMMAND" });
    const silent = await startFakeMonitor({ capabilities: () => "" });
    const error = await failure(QmpClient.connect(silent.path, never, { commandMs: 30 }));
    expect(error).toMatchObject({ code: "E_QMP_TIMEOUT" });
  });
});

describe("commands", () => {
  test("answers go by id, in any order", async () => {
    const monitor = await startFakeMonitor();
    const client = await QmpClient.connect(monitor.path, never);
    const answers = Promise.all(["a", "b", "c"].map((name) => client.execute(name, { name }, never)));
    await monitor.received(4);
    for (const { id, arguments: args } of [...monitor.commands].reverse()) {
      monitor.send(`${JSON.stringify({ return: args, id })}\r\n`);
    }
    expect(await answers).toEqual([{ name: "a" }, { name: "b" }, { name: "c" }]);
  });

  test("answers that come in pieces, and several at once", async () => {
    const monitor = await startFakeMonitor();
    const client = await QmpClient.connect(monitor.path, never);
    const answers = Promise.all([client.execute("a", {}, never), client.execute("b", {}, never)]);
    await monitor.received(3);
    const bytes = Buffer.from('{"return": "ä", "id": 2}\r\n{"return": "ö", "id": 3}\n');
    for (const byte of bytes) {
      monitor.send(Uint8Array.of(byte));
      await new Promise(setImmediate);
    }
    expect(await answers).toEqual(["ä", "ö"]);
  });

  test("a refusal carries QEMU's words", async () => {
    const desc = "Bitmap already exists: bk-G2";
    const monitor = await startFakeMonitor({
      command: () => ({ error: { class: "GenericError", desc } }),
    });
    const client = await QmpClient.connect(monitor.path, never);
    expect(await failure(client.execute("block-dirty-bitmap-add", {}, never))).toMatchObject({
      kind: "source",
      code: "E_QMP_COMMAND",
      message: `QEMU refused block-dirty-bitmap-add: ${desc}`,
      context: { command: "block-dirty-bitmap-add", class: "GenericError", desc },
    });
  });

  test("no answer in time: the command fails alone, and its late answer is dropped", async () => {
    const monitor = await startFakeMonitor({
      command: ({ execute }) => (execute === "slow" ? undefined : { return: execute }),
    });
    const client = await QmpClient.connect(monitor.path, never, { commandMs: 500 });
    expect(await failure(client.execute("slow", undefined, never))).toMatchObject({ code: "E_QMP_TIMEOUT" });
    monitor.send(`{"return": "late", "id": ${monitor.commands[0]!.id}}\r\n`);
    expect(await client.execute("next", undefined, never)).toBe("next");
  });

  test("an abort while it waits: the signal's reason, and the connection goes on", async () => {
    const monitor = await startFakeMonitor({
      command: ({ execute }) => (execute === "slow" ? undefined : { return: execute }),
    });
    const client = await QmpClient.connect(monitor.path, never);
    const run = new AbortController();
    const reason = new Error("enough");
    const slow = failure(client.execute("slow", undefined, run.signal));
    await monitor.received(2);
    run.abort(reason);
    expect(await slow).toBe(reason);
    expect(await failure(client.execute("more", undefined, run.signal))).toBe(reason);
    monitor.send(`{"error": {"class": "x", "desc": "late"}, "id": ${monitor.commands[0]!.id}}\r\n`);
    expect(await client.execute("next", undefined, never)).toBe("next");
    expect(monitor.commands.map(({ execute }) => execute)).toEqual(["slow", "next"]);
  });

  test("a lost connection fails those who wait, and those who come later, with one reason", async () => {
    const monitor = await startFakeMonitor();
    const client = await QmpClient.connect(monitor.path, never);
    const listener = client.listen(["STOP"]);
    const waiting = ["a", "b"].map((name) => failure(client.execute(name, undefined, never)));
    const event = failure(listener.next(ALL, never));
    await monitor.received(3);
    monitor.drop();
    const [first, ...others] = await Promise.all([...waiting, event]);
    expect(first).toMatchObject({ kind: "source", code: "E_QMP_GONE" });
    for (const other of others) expect(other).toBe(first);
    expect(await failure(client.execute("c", undefined, never))).toBe(first);
    expect(await failure(client.listen(["STOP"]).next(ALL, never))).toBe(first);
  });

  test("after close: no commands, and whoever waits is told", async () => {
    const monitor = await startFakeMonitor();
    const client = await QmpClient.connect(monitor.path, never);
    const waiting = failure(client.execute("a", undefined, never));
    await client.close();
    await client.close();
    expect(await waiting).toMatchObject({ code: "E_QMP_GONE" });
    expect(await failure(client.execute("b", undefined, never))).toMatchObject({ code: "E_QMP_GONE" });
  });

  test.each([
    ["an unknown id", '{"return": {}, "id": 4711}\n'],
    ["no id", '{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n'],
    ["an id that is no number", '{"return": {}, "id": "2"}\n'],
    ["what is no JSON", "{]\n"],
    ["an event without a name", '{"event": 5, "timestamp": {"seconds": 1, "microseconds": 1}}\n'],
    ["an error without words", '{"error": "no", "id": 2}\n'],
  ])("%s ends the connection: nothing can be trusted after it", async (_, line) => {
    const monitor = await startFakeMonitor();
    const client = await QmpClient.connect(monitor.path, never);
    const waiting = failure(client.execute("a", undefined, never));
    await monitor.received(2);
    monitor.send(line);
    const error = await waiting;
    expect(error).toMatchObject({ kind: "source", code: "E_QMP_PROTOCOL" });
    expect(error).toHaveProperty("message", expect.stringContaining(monitor.path));
    expect(await failure(client.execute("b", undefined, never))).toBe(error);
  });

  test("a line without an end is not kept for ever", async () => {
    const monitor = await startFakeMonitor();
    const client = await QmpClient.connect(monitor.path, never);
    const waiting = failure(client.execute("a", undefined, never));
    await monitor.received(2);
    const piece = Buffer.alloc(1024 * 1024, "x");
    for (let sent = 0; sent < 33; sent++) monitor.send(piece);
    const error = await waiting;
    expect(error).toMatchObject({ code: "E_QMP_PROTOCOL" });
    expect(hasCode(error, "E_QMP_PROTOCOL") && error.message).toMatch(/line of more than 33554432 bytes/);
  });
});

describe("events", () => {
  test("those before the answer are heard by who listened before the command", async () => {
    const monitor = await startFakeMonitor({
      command: () => {
        monitor.event("BLOCK_JOB_CANCELLED", { device: "j1" });
        return { return: {} };
      },
    });
    const client = await QmpClient.connect(monitor.path, never);
    const listener = client.listen(["BLOCK_JOB_CANCELLED"]);
    await client.execute("block-job-cancel", { device: "j1" }, never);
    expect(await listener.next(ALL, never)).toEqual({
      event: "BLOCK_JOB_CANCELLED",
      data: { device: "j1" },
      timestamp: 1700000000250,
    });
  });

  test("one is taken out, the others stay in their order; other names are not kept", async () => {
    const monitor = await startFakeMonitor();
    const client = await QmpClient.connect(monitor.path, never);
    const listener = client.listen(["A", "B"]);
    const other = client.listen(["A"]);
    for (const [name, n] of [
      ["A", 1],
      ["C", 2],
      ["B", 3],
      ["A", 4],
    ] as const) {
      monitor.event(name, { n });
    }
    expect(await listener.next(({ data }) => data["n"] === 4, never)).toMatchObject({ event: "A" });
    expect(await listener.next(ALL, never)).toMatchObject({ data: { n: 1 } });
    expect(await listener.next(ALL, never)).toMatchObject({ data: { n: 3 } });
    expect(await other.next(ALL, never)).toMatchObject({ data: { n: 1 } });
    expect(await other.next(ALL, never)).toMatchObject({ data: { n: 4 } });
  });

  test("two who wait each get theirs", async () => {
    const monitor = await startFakeMonitor();
    const client = await QmpClient.connect(monitor.path, never);
    const listener = client.listen(["A"]);
    const one = listener.next(({ data }) => data["n"] === 1, never);
    const two = listener.next(({ data }) => data["n"] === 2, never);
    monitor.event("A", { n: 2 });
    monitor.event("A", { n: 1 });
    expect(await one).toMatchObject({ data: { n: 1 } });
    expect(await two).toMatchObject({ data: { n: 2 } });
  });

  test("what came before the connection was lost can still be taken", async () => {
    const monitor = await startFakeMonitor();
    const client = await QmpClient.connect(monitor.path, never);
    const listener = client.listen(["SHUTDOWN"]);
    const waiting = failure(client.execute("quit", undefined, never));
    monitor.event("SHUTDOWN", { guest: true });
    await monitor.received(2);
    monitor.drop();
    await waiting;
    expect(await listener.next(ALL, never)).toMatchObject({ event: "SHUTDOWN" });
    expect(await failure(listener.next(ALL, never))).toMatchObject({ code: "E_QMP_GONE" });
  });

  test("a flood fails the listener, not the connection", async () => {
    const monitor = await startFakeMonitor({ command: () => ({ return: 1 }) });
    const client = await QmpClient.connect(monitor.path, never);
    const listener = client.listen(["A"]);
    const drained = client.listen(["B"]);
    for (let n = 0; n < EVENTS_MAX; n++) monitor.event("A", { n });
    await client.execute("x", undefined, never);
    expect(await listener.next(({ data }) => data["n"] === EVENTS_MAX - 1, never)).toBeDefined();
    for (let n = 0; n < 2; n++) monitor.event("A", { n });
    await client.execute("y", undefined, never);
    const error = await failure(listener.next(ALL, never));
    expect(error).toMatchObject({ kind: "source", code: "E_QMP_EVENTS" });
    monitor.event("B");
    expect(await drained.next(ALL, never)).toMatchObject({ event: "B" });
  });

  test("few but huge events are a flood as well, unless they are taken", async () => {
    const monitor = await startFakeMonitor({ command: () => ({ return: 1 }) });
    const client = await QmpClient.connect(monitor.path, never);
    const listener = client.listen(["A"]);
    const text = "x".repeat(1024 * 1024);
    for (let n = 0; n < 10; n++) {
      monitor.event("A", { text });
      await client.execute("x", undefined, never);
      expect(await listener.next(ALL, never)).toBeDefined();
    }
    for (let n = 0; n < 5; n++) monitor.event("A", { text });
    await client.execute("x", undefined, never);
    expect(await failure(listener.next(ALL, never))).toMatchObject({ code: "E_QMP_EVENTS" });
  });

  test("an abort and a close end the wait", async () => {
    const monitor = await startFakeMonitor({ command: () => ({ return: 1 }) });
    const client = await QmpClient.connect(monitor.path, never);
    const listener = client.listen(["A"]);
    const run = new AbortController();
    const aborted = failure(listener.next(ALL, run.signal));
    run.abort(new Error("enough"));
    expect(await aborted).toBe(run.signal.reason);
    monitor.event("A");
    await client.execute("x", undefined, never);
    expect(await listener.next(ALL, never)).toMatchObject({ event: "A" });
    const closed = failure(listener.next(ALL, never));
    listener.close();
    listener.close();
    expect(await closed).toMatchObject({ kind: "cancelled", code: "E_QMP_NOT_LISTENING" });
  });
});
