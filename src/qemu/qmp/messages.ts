import { z } from "zod";
import type { QmpEvent } from "./events.ts";

/** QEMU's docs/interop/qmp-spec: what the monitor sends, one a line. Unknown members are ignored, as it asks. */

const greetingSchema = z.object({
  QMP: z.object({
    version: z.object({
      qemu: z.object({ major: z.int(), minor: z.int(), micro: z.int() }),
    }),
  }),
});

const eventSchema = z.object({
  event: z.string(),
  data: z.record(z.string(), z.unknown()).default({}),
  timestamp: z.object({ seconds: z.int(), microseconds: z.int() }),
});

/** Without an id when QEMU could not read what it answers to. */
const errorSchema = z.object({
  error: z.object({ class: z.string(), desc: z.string() }),
  id: z.int().optional(),
});

export interface QemuVersion {
  readonly major: number;
  readonly minor: number;
  readonly micro: number;
}

export type QmpMessage =
  | { readonly kind: "greeting"; readonly version: QemuVersion }
  | { readonly kind: "event"; readonly event: QmpEvent }
  | { readonly kind: "error"; readonly id: number | undefined; readonly class: string; readonly desc: string }
  | { readonly kind: "return"; readonly id: number | undefined; readonly value: unknown };

/** @returns undefined for a line that is none of these. */
export function parseQmpMessage(line: Buffer): QmpMessage | undefined {
  let value: unknown;
  try {
    value = JSON.parse(line.toString());
  } catch {
    return undefined;
  }
  if (value === null || typeof value !== "object") return undefined;
  if ("return" in value) {
    const id = "id" in value && typeof value.id === "number" ? value.id : undefined;
    return { kind: "return", id, value: value.return };
  }
  if ("event" in value) {
    const { success, data } = eventSchema.safeParse(value);
    if (!success) return undefined;
    const timestamp = data.timestamp.seconds * 1000 + data.timestamp.microseconds / 1000;
    return { kind: "event", event: { event: data.event, data: data.data, timestamp } };
  }
  if ("error" in value) {
    const { success, data } = errorSchema.safeParse(value);
    return success ? { kind: "error", id: data.id, ...data.error } : undefined;
  }
  const { success, data } = greetingSchema.safeParse(value);
  return success ? { kind: "greeting", version: data.QMP.version.qemu } : undefined;
}
