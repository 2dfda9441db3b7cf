import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { GiB, MiB } from "../../src/bytes/size.ts";
import { machineArguments, type MachineWish } from "../../src/drill/machine-arguments.ts";
import { agentAnswers } from "../../src/drill/proofs.ts";
import { makeDisk } from "../support/guest/disk.ts";
import { FreshRepository, whileExported } from "./disks.ts";
import {
  blockhaul,
  type Finding,
  inFolder,
  interleave,
  measure,
  type Measure,
  note,
  ratioAtMost,
} from "./harness.ts";

const GUEST = resolve(import.meta.dirname, "../../.cache/guest");
const BOOT = [
  ...["-kernel", join(GUEST, "vmlinuz"), "-initrd", join(GUEST, "initrd.gz")],
  ...["-append", "console=ttyS0 quiet panic=-1 cryptomgr.notests writer=1"],
];
const WISH: MachineWish = {
  qemu: "qemu-system-x86_64",
  accelerator: "tcg",
  memory: 384 * MiB,
  cpus: 1,
  more: BOOT,
};
const FLAGS = ["--accel", "tcg", "--memory", "384MiB", "--cpus", "1", "--json"];
const BAR = 1.3;
const AGENT_MS = 120_000;

interface Drilled {
  readonly proofs: readonly { readonly seconds: number }[];
  readonly bytesFetched: number;
}

/** From the command to the guest agent's answer: a drill from a directory, against QEMU on the image as a local file. */
export async function drill(rounds: number): Promise<Finding[]> {
  return inFolder(async (folder) => {
    const image = await makeDisk(join(folder, "web.qcow2"), GiB);
    const repository = FreshRepository.inFolder(folder);
    await repository.start();
    await whileExported(["-f", "qcow2", image], ({ uri }) =>
      measure(blockhaul(["backup", uri, "--name", "web"], repository.env)),
    );
    const more = BOOT.flatMap((argument) => ["--qemu-argument", argument]);
    const args = ["drill", "web", ...FLAGS, ...more, "--scratch", folder];
    let fetched = 0;
    const sides = await interleave(rounds, {
      drill: {
        run: async () => {
          const done = await measure(blockhaul(args, repository.env));
          const { proofs, bytesFetched } = JSON.parse(done.stdout) as Drilled;
          fetched = bytesFetched;
          return { ...done, seconds: proofs[0]!.seconds };
        },
      },
      "local file": { run: () => bootLocally(image, join(folder, "local")) },
    });
    return [
      ratioAtMost(
        "drill / QEMU on a local file, until the guest agent answers",
        sides.drill,
        sides["local file"],
        BAR,
      ),
      note("fetched by a drill of the test guest (its kernel is not on the disk)", `${fetched} bytes`),
    ];
  });
}

/** Only the time is measured. */
async function bootLocally(image: string, folder: string): Promise<Measure> {
  await mkdir(folder);
  const agent = join(folder, "agent.sock");
  const disk = [
    ...["-blockdev", JSON.stringify({ driver: "file", "node-name": "file", filename: image })],
    ...["-blockdev", "driver=qcow2,node-name=disk,file=file,discard=unmap"],
    ...["-device", "virtio-blk-pci,drive=disk"],
  ];
  const started = performance.now();
  const arguments_ = machineArguments(WISH, { nbd: "", disks: [], agent });
  const child = spawn(WISH.qemu, [...arguments_, ...disk], { stdio: ["ignore", "ignore", "inherit"] });
  const exited = once(child, "exit");
  try {
    await agentAnswers(agent, AbortSignal.timeout(AGENT_MS));
    return { seconds: (performance.now() - started) / 1000, cpuSeconds: 0, peakRssBytes: 0, stdout: "" };
  } finally {
    child.kill("SIGKILL");
    await exited;
    await rm(folder, { recursive: true, force: true });
  }
}
