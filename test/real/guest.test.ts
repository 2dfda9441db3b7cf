import { once } from "node:events";
import { access } from "node:fs/promises";
import { connect } from "node:net";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { frozenCopy, fsck, needsRecovery, sequence } from "../support/guest/disk.ts";
import { bootGuest, startGuest, type Guest } from "../support/guest/guest.ts";

/** A client that knows no more than lines: sends text, and gives out what comes, line by line. */
async function speakTo(path: string): Promise<{ send(text: string): void; next(): Promise<string> }> {
  const socket = connect(path);
  onTestFinished(() => void socket.destroy());
  await once(socket, "connect");
  const lines = (async function* () {
    let rest = "";
    for await (const piece of socket.setEncoding("latin1")) {
      const whole = (rest + String(piece)).split("\n");
      rest = whole.pop()!;
      yield* whole;
    }
  })();
  return {
    send: (text) => void socket.write(text, "latin1"),
    next: async () => {
      const line = await lines.next();
      if (line.done) throw new Error(`${path} was closed`);
      return line.value;
    },
  };
}

/** The agent, heard after a sync, so that nothing older can be taken for an answer. */
async function agentOf(path: string): Promise<(command: string) => Promise<unknown>> {
  const { send, next } = await speakTo(path);
  send('\xff{"execute":"guest-sync-delimited","arguments":{"id":4711}}\n');
  let line = await next();
  while (!line.includes("\xff")) line = await next();
  expect(JSON.parse(line.slice(line.indexOf("\xff") + 1))).toEqual({ return: 4711 });
  return async (command) => {
    send(`{"execute":"${command}"}\n`);
    return JSON.parse(await next()) as unknown;
  };
}

async function monitorOf(
  path: string,
): Promise<{ version: number; execute(command: string): Promise<unknown> }> {
  const { send, next } = await speakTo(path);
  const greeting = JSON.parse(await next()) as { QMP: { version: { qemu: { major: number } } } };
  const execute = async (command: string): Promise<unknown> => {
    send(`{"execute":"${command}"}\n`);
    return (JSON.parse(await next()) as { return: unknown }).return;
  };
  await execute("qmp_capabilities");
  return { version: greeting.QMP.version.qemu.major, execute };
}

describe.each([
  { qemu: "system", iothread: false },
  { qemu: "10", iothread: true },
] as const)("QEMU: $qemu", ({ qemu, iothread }) => {
  test("a frozen guest's disks stand still and are clean; thawed, it writes on", async () => {
    const guest = await bootGuest({ qemu, iothread, disks: 2, writer: true });
    const monitor = await monitorOf(guest.qmp);
    if (qemu === "10") expect(monitor.version).toBe(10);
    expect(await monitor.execute("query-iothreads")).toHaveLength(iothread ? 2 : 0);
    await guest.console.waitFor(/^W 3\r?$/m);

    const agent = await agentOf(guest.agent);
    expect(await agent("guest-fsfreeze-freeze")).toEqual({ return: 2 });
    expect(await agent("guest-fsfreeze-status")).toEqual({ return: "frozen" });
    const copies = [await frozenCopy(guest, 0), await frozenCopy(guest, 1)] as const;
    await guest.console.run("sleep 0.5"); // time for some rounds of the writer
    for (const [number, copy] of copies.entries()) {
      expect(await fsck(copy)).toMatchObject({ code: 0 });
      expect(await needsRecovery(copy)).toBe(false);
      expect(await sequence(guest.disks[number]!)).toBe(await sequence(copy));
    }
    const [first, second] = [await sequence(copies[0]), await sequence(copies[1])];
    expect(second).toBeGreaterThanOrEqual(2);
    expect([second, second + 1]).toContain(first);

    expect(await agent("guest-fsfreeze-thaw")).toEqual({ return: 2 });
    await guest.console.waitFor(new RegExp(`^W ${first + 2}\\r?$`, "m"));
    expect(await needsRecovery(guest.disks[0]!)).toBe(true);
    await guest.powerOff();
    expect(await guest.exited).toMatchObject({ code: 0, signal: null });
    for (const disk of guest.disks) {
      expect(await sequence(disk)).toBeGreaterThanOrEqual(first + 1);
      expect(await needsRecovery(disk)).toBe(false);
    }
  });
});

test("a killed guest boots again from its disk and the writer goes on from its number", async () => {
  const killed = await bootGuest({ writer: true });
  await killed.console.waitFor(/^W 2\r?$/m);
  await killed.kill();
  expect(await killed.exited).toMatchObject({ signal: "SIGKILL" });
  expect(await needsRecovery(killed.disks[0]!)).toBe(true);
  const left = await sequence(killed.disks[0]!);
  expect(left).toBeGreaterThanOrEqual(2);

  const guest = await bootGuest({ images: killed.disks });
  expect(Number(await guest.console.run("cat /mnt/seq"))).toBe(left);
  await guest.console.run("writer start");
  const [, next] = await guest.console.waitFor(/^W (\d+)\r?$/m);
  expect(Number(next)).toBe(left + 1);
  await guest.console.run("writer stop; sync");
  const [written] = (await guest.console.run("cat /mnt/seq")).split("\n");
  expect(Number(written)).toBeGreaterThan(left);
  await guest.stop();
  expect(await guest.exited).toMatchObject({ code: 0 });
  expect(await sequence(guest.disks[0]!)).toBe(Number(written));
  await guest.close();
  await expect(access(guest.folder)).rejects.toThrow(/ENOENT/);
  expect(() => process.kill(guest.pid, 0)).toThrow(/ESRCH/);
});

describe("a guest for several tests", () => {
  let guest: Guest;
  beforeAll(async () => {
    guest = await startGuest({ disks: 2 });
  });
  afterAll(() => guest.close());

  test("its agent can hang, go, come back, and refuse to freeze", async () => {
    const run = (command: string): Promise<string> => guest.console.run(command);
    await run("agent hang");
    const heard = agentOf(guest.agent);
    let answered = false;
    void heard.then(() => (answered = true));
    await run("sleep 0.5");
    expect(answered).toBe(false);
    await run("agent resume");
    const agent = await heard;

    await run("echo 'exit 1' > /run/freeze-hook");
    expect(await agent("guest-fsfreeze-freeze")).toMatchObject({
      error: { class: "GenericError", desc: expect.stringContaining("hook has failed") as string },
    });
    await run("rm /run/freeze-hook && agent stop && agent start");
    expect(await agent("guest-fsfreeze-freeze")).toEqual({ return: 2 });
    expect(await agent("guest-fsfreeze-thaw")).toEqual({ return: 2 });
  });

  test("its writer comes to the second disk only when the first has the number", async () => {
    // with the second disk frozen it stands between the two; were the order another, they would never differ
    const differ = 'until [ "$(cat /mnt/seq)" != "$(cat /mnt2/seq)" ]; do sleep 0.1; done';
    await guest.console.run(`fsfreeze --freeze /mnt2 && writer start && ${differ}`);
    expect(await guest.console.run("cat /mnt/seq /mnt2/seq")).toBe("0000000100000000");
    await guest.console.run("fsfreeze --unfreeze /mnt2 && writer stop");
  });

  test("its console runs commands, tells of those that fail, and bounds those that hang", async () => {
    const { console } = guest;
    await expect(console.run("echo said; false")).rejects.toThrow(/exited with 1: said/);
    await expect(console.run("sleep 0.5", 50)).rejects.toThrow(/no end of "sleep 0.5" in 50 ms/);
    await console.run(
      "umount /mnt && mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt && fill /mnt/a 100000 abc",
    );
    expect(await console.run("wc -c < /mnt/a; tail -c 4 /mnt/a; ls /mnt")).toBe("100000\nabc\na\nlost+found");
    await expect(console.waitFor(/never said/, 50)).rejects.toThrow(/no .never said. in 50 ms/);
  });
});

test("a QEMU that does not start says why", async () => {
  await expect(startGuest({ args: ["-device", "no-such-device"] })).rejects.toThrow(/no-such-device/);
});
