import { z } from "zod";
import { isSourceName, isUuid, uuidTime } from "./names.ts";

/** Fields that several records share (FORMAT.md, "Records"). */

export const uuid = z.string().refine(isUuid, "not a UUID in lower case");

export const uuid7 = z
  .string()
  .refine((id) => uuidTime(id) !== undefined, "not a version 7 UUID in lower case");

export const name = z.string().refine(isSourceName, "not a name");

/** "2026-11-22T03:00:00.000Z": one spelling a moment, so that text sorts as time. */
export const timeText = z.iso.datetime({ precision: 3 });

/** SHA-256 in lower-case hexadecimal. */
export const digestText = z.string().regex(/^[0-9a-f]{64}$/, "not a SHA-256 in lower-case hexadecimal");

/** A count or a number of bytes: a whole number from 0 to 2^53-1. */
export const count = z.int().nonnegative();

/** Text for people or from them, up to 1,024 UTF-16 units. */
export const shortText = z.string().max(1024);
