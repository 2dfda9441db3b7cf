import { z } from "zod";
import { AppError } from "../errors.ts";
import type { QmpClient } from "./qmp/client.ts";
import type { QemuVersion } from "./qmp/messages.ts";

export interface VmBitmap {
  readonly name: string;
  readonly recording: boolean;
  /** Stored in the image when QEMU ends in good order. */
  readonly persistent: boolean;
  /** In use by an export or a job: it can be neither changed nor removed. */
  readonly busy: boolean;
  /** Was not stored when QEMU ended, so what it should say is lost. It can only be removed. */
  readonly inconsistent: boolean;
  /** Bytes that one bit stands for. */
  readonly granularity: number;
  readonly dirtyBytes: number;
}

/** A block device of the VM with a medium in it that cannot be taken out. */
export interface VmDisk {
  /** What the user calls it, `[A-Za-z0-9._-]{1,128}`; unique in the VM. */
  readonly name: string;
  /** An id or a QOM path; qom-set takes both. */
  readonly qdev: string;
  /** The top of its graph, where the guest's writes come in. */
  readonly node: string;
  readonly driver: string;
  /** Bytes. */
  readonly size: number;
  readonly bitmaps: readonly VmBitmap[];
  readonly readOnly: boolean;
  /** Whether bitmaps on its node outlive QEMU. */
  readonly canPersist: boolean;
  /** "ok", "nospace", "failed"; or undefined where the device does not tell. */
  readonly ioStatus: string | undefined;
}

export interface VmNode {
  readonly name: string;
  readonly driver: string;
  /** Of the image, as QEMU says it: a path, or `json:{…}`. */
  readonly filename: string;
  readonly bitmaps: readonly VmBitmap[];
}

export interface VmJob {
  readonly id: string;
  readonly type: string;
  readonly status: string;
}

export interface VmExport {
  readonly id: string;
  readonly node: string;
}

/** A running QEMU, as far as a backup cares, at the time it was asked. */
export interface Vm {
  /** Of query-status: "running", "paused", "prelaunch", "io-error"… */
  readonly status: string;
  readonly version: QemuVersion;
  readonly disks: readonly VmDisk[];
  readonly jobs: readonly VmJob[];
  readonly exports: readonly VmExport[];
  /** Those that have a name, whether a device uses them or not. */
  readonly nodes: readonly VmNode[];
  /** Whether the VM has iothreads; which devices use one is not asked. */
  readonly iothreads: boolean;
}

const bytes = z.int().nonnegative();

const bitmapSchema = z.object({
  name: z.string().optional(), // those of jobs have none
  recording: z.boolean(),
  persistent: z.boolean(),
  busy: z.boolean(),
  inconsistent: z.boolean().optional(),
  granularity: bytes,
  count: bytes,
});

const nodeSchema = z.object({
  "node-name": z.string(),
  drv: z.string(),
  ro: z.boolean(),
  image: z.object({
    filename: z.string(),
    "virtual-size": bytes,
    "format-specific": z
      .object({ type: z.string(), data: z.object({ compat: z.string().optional() }).optional() })
      .optional(),
  }),
  "dirty-bitmaps": z.array(bitmapSchema).optional(),
});

const deviceSchema = z.object({
  device: z.string(),
  qdev: z.string().optional(),
  removable: z.boolean(),
  "io-status": z.string().optional(),
  inserted: nodeSchema.optional(),
});

const statusSchema = z.object({ status: z.string() });
const devicesSchema = z.array(deviceSchema);
const nodesSchema = z.array(nodeSchema.extend({ "node-name": z.string().optional() }));
const jobsSchema = z.array(z.object({ id: z.string(), type: z.string(), status: z.string() }));
const exportsSchema = z.array(z.object({ id: z.string(), "node-name": z.string() }));
const iothreadsSchema = z.array(z.unknown());

/**
 * Asks QEMU what there is.
 *
 * @throws AppError E_QMP_ANSWER (source) when QEMU answers what it should not; as `QmpClient.execute`.
 */
export async function surveyVm(client: QmpClient, signal: AbortSignal): Promise<Vm> {
  const [status, disks, nodes, jobs, exports, iothreads] = await Promise.all([
    queryStatus(client, signal),
    queryDisks(client, signal),
    query(client, "query-named-block-nodes", nodesSchema, signal, { flat: true }),
    queryJobs(client, signal),
    queryExports(client, signal),
    query(client, "query-iothreads", iothreadsSchema, signal),
  ]);
  return {
    status,
    version: client.version,
    disks,
    nodes: nodes.flatMap(nodeOf),
    jobs,
    exports,
    iothreads: iothreads.length > 0,
  };
}

/** @throws as `surveyVm`. */
export async function queryStatus(client: QmpClient, signal: AbortSignal): Promise<string> {
  return (await query(client, "query-status", statusSchema, signal)).status;
}

/** @throws as `surveyVm`. */
export async function queryDisks(client: QmpClient, signal: AbortSignal): Promise<readonly VmDisk[]> {
  return disksOf(await query(client, "query-block", devicesSchema, signal));
}

/** @throws as `surveyVm`. */
export async function queryJobs(client: QmpClient, signal: AbortSignal): Promise<readonly VmJob[]> {
  return await query(client, "query-jobs", jobsSchema, signal);
}

/** @throws as `surveyVm`. */
export async function queryExports(client: QmpClient, signal: AbortSignal): Promise<readonly VmExport[]> {
  const exports = await query(client, "query-block-exports", exportsSchema, signal);
  return exports.map((one) => ({ id: one.id, node: one["node-name"] }));
}

async function query<T>(
  client: QmpClient,
  command: string,
  schema: z.ZodType<T>,
  signal: AbortSignal,
  args?: object,
): Promise<T> {
  const { success, data, error } = schema.safeParse(await client.execute(command, args, signal));
  if (success) return data;
  const issue = error.issues[0]!;
  const what = `${issue.path.join(".")}: ${issue.message}`;
  throw new AppError("source", "E_QMP_ANSWER", `QEMU's answer to ${command} cannot be read: ${what}`, {
    command,
  });
}

/** The disks among what query-block lists: no empty or removable drives, no drives without a device. */
function disksOf(devices: readonly z.infer<typeof deviceSchema>[]): VmDisk[] {
  const taken = new Set<string>();
  return devices.flatMap(({ device, qdev, removable, inserted, "io-status": ioStatus }) => {
    if (inserted === undefined || removable || qdev === undefined) return [];
    const node = inserted["node-name"];
    const compat = inserted.image["format-specific"]?.data?.compat;
    return {
      name: unique(cleanName(device !== "" ? device : nameOfDevice(qdev, node)), taken),
      qdev,
      node,
      driver: inserted.drv,
      size: inserted.image["virtual-size"],
      bitmaps: bitmapsOf(inserted),
      readOnly: inserted.ro,
      canPersist: inserted.drv === "qcow2" && compat !== "0.10" && !inserted.ro,
      ioStatus,
    };
  });
}

/**
 * "vd0" of "/machine/peripheral/vd0/virtio-backend". A device without an id is called by its node: its place among
 * such devices changes when another is added before it.
 */
function nameOfDevice(qdev: string, node: string): string {
  if (!qdev.startsWith("/")) return qdev;
  const id = /^\/machine\/peripheral\/([^/]+)/.exec(qdev)?.[1];
  if (id !== undefined) return id;
  return node.startsWith("#") ? qdev.replace(/^\/machine\//, "") : node;
}

function cleanName(text: string): string {
  const clean = text.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[.-]+|[.-]+$/g, "");
  return clean === "" ? "disk" : clean.slice(0, 128);
}

function unique(name: string, taken: Set<string>): string {
  let free = name;
  for (let n = 2; taken.has(free); n++) free = `${name.slice(0, 120)}-${n}`;
  taken.add(free);
  return free;
}

function nodeOf(node: z.infer<typeof nodesSchema>[number]): VmNode[] {
  const name = node["node-name"];
  if (name === undefined) return [];
  return [{ name, driver: node.drv, filename: node.image.filename, bitmaps: bitmapsOf(node) }];
}

function bitmapsOf(node: {
  readonly "dirty-bitmaps"?: readonly z.infer<typeof bitmapSchema>[] | undefined;
}): VmBitmap[] {
  return (node["dirty-bitmaps"] ?? []).flatMap(({ name, count, inconsistent, ...rest }) =>
    name === undefined ? [] : { name, ...rest, inconsistent: inconsistent === true, dirtyBytes: count },
  );
}
