import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, onTestFinished, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { QmpClient } from "../../src/qemu/qmp/client.ts";
import { backUpQcow2 } from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { fsck, makeDisk, sequence } from "../support/guest/disk.ts";
import { bootGuest } from "../support/guest/guest.ts";
import { directoryRepository } from "../support/repositories.ts";
import { output } from "../support/serve.ts";
import { startServe } from "../support/served-generation.ts";

const { signal } = new AbortController();

interface Command {
  readonly execute: string;
  readonly arguments: object;
}

test(
  "a VM boots from a served generation and writes; its disk moves to a local image while it runs",
  { timeout: 240_000 },
  async () => {
    const folder = await temporaryFolder();
    const repository = await directoryRepository();
    await backUpQcow2(repository, await makeDisk(join(folder, "lost.qcow2"), 64 * MiB));
    const args = ["web", "--socket", join(folder, "s"), "--overlay", join(folder, "o"), "--print-qemu"];
    const served = await startServe(repository, args);
    // all as it is printed, but for the folder of the local image
    const printed = JSON.stringify(served.exports[0]!.qemu);
    const qemu = JSON.parse(printed.replaceAll("/var/lib/libvirt/images", folder)) as NonNullable<
      (typeof served.exports)[0]["qemu"]
    >;
    const [addTarget, mirror, complete, drop] = qemu.move as Command[];

    const guest = await bootGuest({ images: [], writer: true, args: qemu.options.flat() });
    const monitor = await QmpClient.connect(guest.qmp, signal);
    onTestFinished(() => monitor.close());
    const events = monitor.listen(["BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED"]);
    const execute = (command: Command): Promise<unknown> =>
      monitor.execute(command.execute, command.arguments, signal);
    await guest.console.waitFor(/^W 3\r?$/m, 60_000);

    await promisify(execFile)("sh", ["-c", qemu.createTarget]);
    await execute(addTarget!);
    await execute(mirror!);
    await events.next(({ event }) => event === "BLOCK_JOB_READY", signal);
    // held still, so that both sides can be compared afterwards
    await monitor.execute("stop", undefined, signal);
    await execute(complete!);
    const completed = await events.next(({ event }) => event === "BLOCK_JOB_COMPLETED", signal);
    expect(completed.data).not.toHaveProperty("error");
    const local = join(folder, `${served.exports[0]!.disk}.qcow2`);
    const compare = ["compare", "-U", "-f", "raw", "-F", "qcow2", served.uri, local];
    expect((await output("qemu-img", ...compare)).trim()).toBe("Images are identical.");
    await execute(drop!);
    expect(await served.end("SIGTERM")).toMatchObject({ code: 0 });

    const before = await sequence(local);
    await monitor.execute("cont", undefined, signal);
    await guest.console.waitFor(new RegExp(`^W ${before + 3}\\r?$`, "m"), 60_000);
    await guest.powerOff();
    expect(await sequence(local)).toBeGreaterThan(before);
    expect(await fsck(local)).toMatchObject({ code: 0 });

    // what the VM wrote until it moved is in the overlay still
    const again = await startServe(repository, args);
    await output("nbdcopy", again.uri, join(folder, "kept.raw"));
    expect(await sequence(join(folder, "kept.raw"))).toBeGreaterThanOrEqual(2);
  },
);
