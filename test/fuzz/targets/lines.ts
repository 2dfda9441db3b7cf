import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { MiB } from "../../../src/bytes/size.ts";
import { GuestAgent } from "../../../src/qemu/guest-agent.ts";
import { surveyVm } from "../../../src/qemu/inventory.ts";
import { QmpClient } from "../../../src/qemu/qmp/client.ts";
import { mutateJson } from "../mutate-json.ts";
import type { FuzzTarget } from "../target.ts";

const never = new AbortController().signal;
/** Every wait ends by then, milliseconds. */
const WAIT_MS = 200;

/** The answers to commands, by their names; "" is said at once, null is silence. */
type Answers = Readonly<Record<string, unknown>>;

/** QEMU's monitor and the guest agent over real sockets, as far as sessions go: answers to real commands, wrong. */
export async function lineTargets(): Promise<FuzzTarget[]> {
  const peer = await startPeer();
  const session = async (input: Buffer, work: (path: string) => Promise<void>): Promise<void> => {
    peer.answers = answersOf(input);
    await work(peer.path).finally(() => peer.drop());
  };
  const common = { mutate: mutateJson, allocatesMax: 16 * MiB };
  return [
    {
      name: "QMP session",
      seeds: [VM, STOPPED].map((answers) => Buffer.from(JSON.stringify(answers))),
      ...common,
      decode: (input) =>
        session(input, async (path) => {
          const client = await QmpClient.connect(path, never, { greetingMs: WAIT_MS, commandMs: WAIT_MS });
          const listener = client.listen(["STOP"]);
          try {
            await surveyVm(client, never);
          } finally {
            listener.close();
            await client.close();
          }
        }),
    },
    {
      name: "guest agent session",
      seeds: [Buffer.from(JSON.stringify(AGENT))],
      ...common,
      decode: (input) =>
        session(input, async (path) => {
          const timing = { syncMs: WAIT_MS, freezeMs: WAIT_MS, commandMs: WAIT_MS };
          const agent = await GuestAgent.connect(path, never, timing);
          try {
            await agent.status(never);
            await agent.freeze(never);
            await agent.thaw(never);
          } finally {
            await agent.close();
          }
        }),
    },
  ];
}

function answersOf(input: Buffer): Answers {
  try {
    const value: unknown = JSON.parse(input.toString("utf8"));
    return value !== null && typeof value === "object" ? (value as Answers) : { "": value };
  } catch {
    return { "": input.toString("latin1") };
  }
}

interface Peer {
  readonly path: string;
  answers: Answers;
  drop(): void;
}

async function startPeer(): Promise<Peer> {
  const folder = mkdtempSync(join(tmpdir(), "blockhaul-fuzz-"));
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  const sockets = new Set<Socket>();
  const peer: Peer = {
    path: join(folder, "peer.sock"),
    answers: {},
    drop: () => sockets.forEach((socket) => socket.destroy()),
  };
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket)).on("error", () => undefined);
    say(socket, peer.answers[""], undefined);
    let rest = "";
    socket.setEncoding("latin1").on("data", (text: string) => {
      rest += text;
      const lines = rest.split("\n");
      rest = lines.pop()!;
      for (const line of lines) answer(socket, peer.answers, line);
    });
  });
  server.listen(peer.path);
  await once(server, "listening");
  server.unref();
  return peer;
}

function answer(socket: Socket, answers: Answers, line: string): void {
  const asked = JSON.parse(line.replace(/^\xff/, "")) as {
    execute: string;
    id?: number;
    arguments?: { id?: number };
  };
  if (!(asked.execute in answers)) {
    socket.destroy(); // what nobody has an answer to ends it
    return;
  }
  const value = answers[asked.execute];
  const synced = value === "SYNC" ? { return: asked.arguments?.id } : value;
  say(socket, synced, asked.id);
}

/** An object as a line, with the id that the command had; a string as it is. */
function say(socket: Socket, value: unknown, id: number | undefined): void {
  if (value === undefined || value === null) return;
  if (typeof value === "string") socket.write(Buffer.from(value, "latin1"));
  else if (typeof value === "object")
    socket.write(`${JSON.stringify(id === undefined ? value : { ...value, id })}\n`);
  else socket.write(`${JSON.stringify(value)}\n`);
}

const NODE = {
  "node-name": "drive0",
  drv: "qcow2",
  ro: false,
  image: {
    filename: "/vm/a.qcow2",
    "virtual-size": 10_485_760,
    "format-specific": { type: "qcow2", data: { compat: "1.1" } },
  },
  "dirty-bitmaps": [
    { name: "b", recording: true, persistent: true, busy: false, granularity: 65_536, count: 0 },
  ],
};
const GREETING = {
  QMP: { version: { qemu: { micro: 22, minor: 2, major: 7 }, package: "" }, capabilities: [] },
};
const VM = {
  "": GREETING,
  qmp_capabilities: { return: {} },
  "query-status": { return: { status: "running", running: true } },
  "query-block": {
    return: [
      {
        device: "",
        qdev: "/machine/peripheral/vd0/virtio-backend",
        removable: false,
        "io-status": "ok",
        inserted: NODE,
      },
    ],
  },
  "query-named-block-nodes": { return: [NODE, NODE] },
  "query-jobs": { return: [{ id: "j", type: "backup", status: "running" }] },
  "query-block-exports": { return: [{ id: "e", "node-name": "drive0" }] },
  "query-iothreads": { return: [{ id: "t" }] },
};
const STOPPED = { ...VM, "query-block": { error: { class: "GenericError", desc: "no" } } };
const AGENT = {
  "guest-sync-delimited": "SYNC",
  "guest-fsfreeze-status": { return: "thawed" },
  "guest-fsfreeze-freeze": { return: 2 },
  "guest-fsfreeze-thaw": { return: 2 },
};
