import { AppError } from "../errors.ts";
import { FilterFleecing } from "./filter-fleecing.ts";
import type { Vm, VmDisk } from "./inventory.ts";
import type { QmpSchema } from "./qmp/schema.ts";

/**
 * The disks that a run backs up: those named, in their order in the VM; without names, all that the guest can write.
 *
 * @throws AppError E_DISK_UNKNOWN (notFound), E_NO_DISKS (notFound).
 */
export function selectDisks(vm: Pick<Vm, "disks">, names: readonly string[] | undefined): VmDisk[] {
  const there = vm.disks.map((disk) => disk.name);
  const unknown = names?.find((name) => !there.includes(name));
  if (unknown !== undefined) {
    const message = `The VM has no disk ${unknown}; it has ${there.join(", ") || "none"}`;
    throw new AppError("notFound", "E_DISK_UNKNOWN", message, { disk: unknown });
  }
  const chosen = vm.disks.filter((disk) => names?.includes(disk.name) ?? !disk.readOnly);
  if (chosen.length > 0) return chosen;
  throw new AppError("notFound", "E_NO_DISKS", "The VM has no disk that could be backed up");
}

/**
 * QEMU before 9.0 aborts when a client of its NBD server hangs up, if the disk is served in an iothread (found by
 * running 7.2; commit 7075d235 of QEMU). A backup is not worth a VM.
 *
 * @throws AppError E_IOTHREAD (usage).
 */
export function refuseIothreads({
  iothreads,
  version: { major, minor },
}: {
  readonly iothreads: boolean;
  readonly version: Pick<Vm["version"], "major" | "minor">;
}): void {
  if (!iothreads || major >= 9) return;
  throw new AppError(
    "usage",
    "E_IOTHREAD",
    `The VM has iothreads, and QEMU ${major}.${minor} may abort when an NBD client leaves such a disk; ` +
      "use QEMU 9.0 or newer, or start the VM without iothreads",
    { major, minor },
  );
}

/** @throws AppError E_QEMU_OLD, E_FLEECING (usage). */
export function requireQemu(
  vm: Pick<Vm, "version">,
  schema: QmpSchema,
  fleecing: "auto" | "classic" | "filter",
): void {
  const can =
    schema.hasCommand("block-export-add") && schema.hasArgument("blockdev-backup", ["filter-node-name"]);
  if (!can) {
    const { major, minor } = vm.version;
    const message = `QEMU ${major}.${minor} cannot make a backup of this kind: it has no block-export-add, of 5.2`;
    throw new AppError("usage", "E_QEMU_OLD", message, { major, minor });
  }
  if (fleecing === "filter") FilterFleecing.check(vm, schema);
}
