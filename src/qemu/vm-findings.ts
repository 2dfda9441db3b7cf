import { access, constants } from "node:fs/promises";
import { dirname } from "node:path";
import { formatSize } from "../bytes/size.ts";
import { AppError, messageOf, systemCode } from "../errors.ts";
import { bitmapsIn, type OwnedBitmap } from "./bitmap-verbs.ts";
import { FilterFleecing } from "./filter-fleecing.ts";
import type { Vm, VmDisk } from "./inventory.ts";
import { parseNode, tokenOfExport, tokenOfJob } from "./names.ts";
import type { QmpSchema } from "./qmp/schema.ts";
import { refuseIothreads, requireQemu, selectDisks } from "./requirements.ts";
import { forecastScratch, freeIn, scratchSizeOf } from "./scratch.ts";

/** One thing that was looked at, for people. */
export interface VmFinding {
  readonly check: string;
  /** `warning`: a backup can be made, but somebody should look. `failed`: none can. `fixed`: it was wrong until now. */
  readonly status: "ok" | "fixed" | "warning" | "failed";
  readonly detail: string;
  /** Of what failed. */
  readonly error?: unknown;
}

export function failed(check: string, error: unknown): VmFinding {
  return { check, status: "failed", detail: messageOf(error), error };
}

/** Which ways of holding the disks still are open here. */
export function fleecingFindings(vm: Vm, schema: QmpSchema): VmFinding[] {
  const why = (check: () => void): unknown => {
    try {
      check();
      return undefined;
    } catch (error) {
      return error;
    }
  };
  const classic = why(() => {
    refuseIothreads(vm);
    requireQemu(vm, schema, "classic");
  });
  const filter = classic ?? why(() => FilterFleecing.check(vm, schema));
  return [
    classic === undefined
      ? { check: "fleecing classic", status: "ok", detail: "possible" }
      : failed("fleecing classic", classic),
    { check: "fleecing filter", status: "ok", detail: filter === undefined ? "possible" : messageOf(filter) },
  ];
}

export function diskFindings(vm: Vm): VmFinding[] {
  const disks = vm.disks.map((disk): VmFinding => {
    const what = [formatSize(disk.size), disk.driver, whatOfBitmaps(disk)];
    const sick = disk.ioStatus !== undefined && disk.ioStatus !== "ok";
    if (sick) what.push(`I/O status ${disk.ioStatus}: a write of the guest could not be done`);
    return { check: `disk ${disk.name}`, status: sick ? "warning" : "ok", detail: what.join(", ") };
  });
  try {
    selectDisks(vm, undefined);
    return disks;
  } catch (error) {
    return [...disks, failed("disks", error)];
  }
}

function whatOfBitmaps(disk: VmDisk): string {
  if (parseNode(disk.node) !== undefined) return "a run of ours is over it";
  if (disk.readOnly) return "read-only: only backed up when named with --disk";
  if (disk.canPersist) return "bitmaps outlive QEMU";
  return "bitmaps do not outlive QEMU: the first backup after its end is a rescan";
}

/** The bitmaps of generations. */
export function bitmapFindings(vm: Vm): VmFinding[] {
  const { disks, nodes } = bitmapsIn(vm, new Map());
  const places = [
    ...disks.map(({ disk, bitmaps }) => ({ place: disk, bitmaps })),
    ...nodes.map(({ node, bitmaps }) => ({ place: `image ${node}, which is not on top of a disk`, bitmaps })),
  ];
  return places.flatMap(({ place, bitmaps }) => bitmaps.flatMap((bitmap) => bitmapFinding(place, bitmap)));
}

function bitmapFinding(place: string, bitmap: OwnedBitmap): VmFinding[] {
  const { owner, recording, inconsistent, busy, dirtyBytes } = bitmap;
  if (owner.kind !== "generation") return [];
  const whose = `generation ${owner.generation} of repository ${owner.repository} on ${place}`;
  if (inconsistent) {
    const detail = `${whose}: lost, QEMU ended without storing it; the next backup there is a rescan`;
    return [{ check: "bitmap", status: "warning", detail }];
  }
  const state = recording
    ? "recording"
    : "disabled: it recorded no further, so that the next backup may be a rescan";
  const use = busy ? ", in use" : "";
  const detail = `${whose}: ${state}${use}, ${formatSize(dirtyBytes)} dirty`;
  return [{ check: "bitmap", status: recording ? "ok" : "warning", detail }];
}

/** What others have in the VM. It is left alone, whatever is asked. */
export function foreignFindings(vm: Vm): VmFinding[] {
  const exports = vm.exports.map(({ id }) => id).filter((id) => tokenOfExport(id) === undefined);
  const jobs = vm.jobs.filter(({ id }) => tokenOfJob(id) === undefined);
  const { disks, nodes } = bitmapsIn(vm, new Map());
  const bitmaps = [...disks, ...nodes].flatMap((place) =>
    place.bitmaps
      .filter(({ owner }) => owner.kind === "foreign")
      .map(({ name }) => `bitmap ${name} of ${"disk" in place ? place.disk : place.node}`),
  );
  const harmless = [...jobs.map(({ id, type }) => `job ${id} (${type})`), ...bitmaps];
  return [
    ...(exports.length === 0
      ? []
      : [
          {
            check: "foreign",
            status: "warning" as const,
            detail:
              `export ${exports.join(", export ")}: QEMU has one NBD server, and a backup has to wait until who uses ` +
              "it has ended",
          },
        ]),
    ...(harmless.length === 0
      ? []
      : [{ check: "foreign", status: "ok" as const, detail: `${harmless.join(", ")}: left alone` }]),
  ];
}

/** Whether a backup could write its scratch images, and what of the guest's writes they would hold. */
export async function scratchFinding(
  vm: { readonly disks: readonly Pick<VmDisk, "readOnly" | "size">[] },
  folder: string,
): Promise<VmFinding> {
  const check = "scratch";
  try {
    const place = await nearestFolder(folder);
    await access(place, constants.W_OK | constants.X_OK);
    const sizes = vm.disks.filter((disk) => !disk.readOnly).map((disk) => disk.size);
    const free = await freeIn(place);
    const shares = forecastScratch(folder, sizes, free, undefined);
    const need = sizes.reduce((sum, size) => sum + scratchSizeOf(size), 0);
    const where = `${folder}${place === folder ? "" : " (to be made)"}: ${formatSize(free)} free`;
    if (shares.every(({ threshold }) => threshold === undefined)) {
      return { check, status: "ok", detail: `${where}, a backup takes up to ${formatSize(need)}` };
    }
    const detail = `${where}, a backup could take up to ${formatSize(need)}: it ends when the guest writes more meanwhile than there is room for`;
    return { check, status: "warning", detail };
  } catch (error) {
    if (error instanceof AppError) return failed(check, error);
    const message = `Cannot write to the scratch folder ${folder}: ${messageOf(error)}; choose one with --scratch`;
    return failed(check, new AppError("usage", "E_SCRATCH_FOLDER", message, { folder }, error));
  }
}

/** The folder, or the one above in which it would be made. */
async function nearestFolder(folder: string): Promise<string> {
  try {
    await access(folder);
    return folder;
  } catch (error) {
    const above = dirname(folder);
    if (systemCode(error) !== "ENOENT" || above === folder) throw error;
    return await nearestFolder(above);
  }
}
