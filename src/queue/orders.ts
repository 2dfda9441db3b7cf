import { hash } from "node:crypto";
import { z } from "zod";
import { KiB } from "../bytes/size.ts";
import { AppError } from "../errors.ts";

/** Bytes of a message; ours are some hundred. */
const ORDER_SIZE_MAX = 16 * KiB;

/** As in a file of jobs. */
const name = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/, "not a name");
const count = z.int().nonnegative();

/** When the work should have begun, with a time zone: "2026-11-24T01:17:00Z". */
const moment = z.iso.datetime({ offset: true });

const backupSchema = z
  .strictObject({
    order: z.literal("backup"),
    job: name,
    source: name,
    /** A generation that was begun since then is what was asked for. */
    scheduledAt: moment,
    /** Of a backup that had to stop for want of time: what became of it until here. */
    continued: z
      .strictObject({
        /** Runs before this one. */
        slices: count,
        /** How many of the latest runs came no further than those before. */
        idle: count,
        /** Bytes of the disks that the best of them had behind it. */
        reached: count,
      })
      .readonly()
      .optional(),
  })
  .readonly();

/** What upkeep of a job is made of, in the order in which it is done. */
export const UPKEEP_STEPS = ["forget", "prune", "verify", "scrub"] as const;
export type UpkeepOrderStep = (typeof UPKEEP_STEPS)[number];

const upkeepSchema = z
  .strictObject({
    order: z.literal("upkeep"),
    job: name,
    scheduledAt: moment,
    /** What is to be done; undefined: what the job says. */
    steps: z.array(z.enum(UPKEEP_STEPS)).min(1).readonly().optional(),
    continued: z
      .strictObject({
        slices: count,
        idle: count,
        /** Steps that are done are not repeated. */
        step: z.enum(UPKEEP_STEPS),
        /** Of a scrub: the next part, and how many there are. */
        part: z
          .strictObject({ number: count.min(1), of: count.min(1) })
          .readonly()
          .optional(),
        /** Steps that were done and failed, so that the end says so. */
        failed: z.array(z.enum(UPKEEP_STEPS)).readonly(),
      })
      .readonly()
      .optional(),
  })
  .readonly();

/** What a schedule sends by itself, without one of our functions in between. */
const scheduleSchema = z
  .strictObject({
    job: name,
    scheduledAt: moment,
    steps: z.array(z.enum(UPKEEP_STEPS)).min(1).readonly().optional(),
  })
  .readonly();

/** "Back up this source of this job." */
export type BackupOrder = z.infer<typeof backupSchema>;
/** "Look after the repository of this job." */
export type UpkeepOrder = z.infer<typeof upkeepSchema>;

/** @throws AppError E_ORDER (usage): it is no such message, and never will be. */
export function parseBackupOrder(body: string): BackupOrder {
  return parse(body, backupSchema);
}

/** Also one that a schedule has sent. @throws AppError E_ORDER (usage). */
export function parseUpkeepOrder(body: string): UpkeepOrder {
  const parsed = parse(body, z.union([upkeepSchema, scheduleSchema]));
  return "order" in parsed ? parsed : { order: "upkeep", ...parsed };
}

function parse<T>(body: string, schema: z.ZodType<T>): T {
  if (body.length > ORDER_SIZE_MAX) throw notAnOrder("it is too long");
  let raw: unknown;
  try {
    raw = JSON.parse(body);
  } catch (error) {
    throw notAnOrder("it is no JSON", error);
  }
  const parsed = schema.safeParse(raw);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const at = issue?.path.join(".") ?? "";
  throw notAnOrder(`${at === "" ? "" : `${at}: `}${issue?.message ?? "it has other fields"}`, parsed.error);
}

function notAnOrder(why: string, cause?: unknown): AppError {
  return new AppError("usage", "E_ORDER", `The message asks for nothing that can be done: ${why}`, {}, cause);
}

/** What a queue goes by that sends each message once, and those of a group one after the other. */
export interface Outgoing {
  readonly body: string;
  /** Messages of one group are never out at the same time. */
  readonly group: string;
  /** Two messages with the same are one, for five minutes. */
  readonly once: string;
}

/** The same order, sent again, is the same message. */
export function outgoing(order: BackupOrder | UpkeepOrder): Outgoing {
  const body = JSON.stringify(order);
  const group = order.order === "backup" ? order.source : order.job;
  return { body, group, once: hash("sha256", body) };
}
