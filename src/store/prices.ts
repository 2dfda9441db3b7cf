import { readFile } from "node:fs/promises";
import { z } from "zod";
import { GiB } from "../bytes/size.ts";
import { AppError, messageOf } from "../errors.ts";
import type { RequestCounts } from "./store.ts";

/** What a provider charges; amounts are in `currency`, before tax. */
const PRICES = z.strictObject({
  /** Which prices these are: provider, class, region. */
  name: z.string().min(1).max(200),
  /** When they were looked up, for a reader to judge by. */
  asOf: z.iso.date(),
  /** Put before an amount: "$", "€", "CHF ". */
  currency: z.string().min(1).max(8),
  /** A thousand PUT, COPY, POST and LIST requests. */
  writesPer1000: z.number().nonnegative(),
  /** A thousand GET, HEAD and all other requests; DELETE is free. */
  readsPer1000: z.number().nonnegative(),
  /** A GiB stored for a month. */
  gibMonth: z.number().nonnegative(),
  /** A GiB that leaves the provider's network; 0 for whoever reads from within. */
  gibOut: z.number().nonnegative(),
});

export type Prices = z.infer<typeof PRICES>;

/** Amazon S3 pricing, first tier; its "GB" are GiB. */
export const DEFAULT_PRICES: Prices = {
  name: "AWS S3 Standard, eu-central-1",
  asOf: "2025-06-01",
  currency: "$",
  writesPer1000: 0.0054,
  readsPer1000: 0.00043,
  gibMonth: 0.0245,
  gibOut: 0.09,
};

/** More than any price sheet. */
const FILE_MAX = 64 * 1024;

/** Operations that are charged as PUT, COPY, POST and LIST are (Amazon S3 pricing, "Requests & data retrievals"). */
const WRITES = /^(Put|Copy|Create|Upload|Complete|List)/;

/** Never charged (the same page; "Multipart upload and pricing" of the user guide for the second). */
const FREE = /^(Delete|Abort)/;

/**
 * A price sheet: a JSON file with all fields of `Prices`; without one, `DEFAULT_PRICES`.
 *
 * @throws AppError E_PRICES (usage).
 */
export async function readPrices(path: string | undefined): Promise<Prices> {
  if (path === undefined) return DEFAULT_PRICES;
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    throw unreadable(path, messageOf(error), error);
  }
  if (text.length > FILE_MAX) throw unreadable(path, "it is far too long for a price sheet");
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw unreadable(path, messageOf(error), error);
  }
  const parsed = PRICES.safeParse(json);
  if (parsed.success) return parsed.data;
  const wrong = parsed.error.issues.map(({ path: at, message }) => `${at.join(".") || "all"}: ${message}`);
  throw unreadable(path, wrong.join("; "));
}

function unreadable(path: string, why: string, cause?: unknown): AppError {
  return new AppError("usage", "E_PRICES", `The price sheet ${path} cannot be used: ${why}`, { path }, cause);
}

/** Whether somebody is paid for what a repository keeps there: a directory costs nobody anything. */
export function isBilled(location: string): boolean {
  return location.startsWith("s3://");
}

/** What requests cost, in the sheet's currency. */
export function requestCost(requests: RequestCounts, prices: Prices): number {
  let cost = 0;
  for (const [operation, count] of Object.entries(requests)) {
    if (FREE.test(operation)) continue;
    cost += (count / 1000) * (WRITES.test(operation) ? prices.writesPer1000 : prices.readsPer1000);
  }
  return cost;
}

/** What so many bytes cost a month, in the sheet's currency. */
export function storageCost(bytes: number, prices: Prices): number {
  return (bytes / GiB) * prices.gibMonth;
}

/** What it costs to have so many bytes leave the provider's network, in the sheet's currency. */
export function transferCost(bytes: number, prices: Prices): number {
  return (bytes / GiB) * prices.gibOut;
}

/** An amount for people: to the cent from one up, else with as many digits as tell something. */
export function formatMoney(amount: number, { currency }: Prices): string {
  if (amount === 0) return `${currency}0`;
  if (amount < 0.0001) return `less than ${currency}0.0001`;
  return `${currency}${amount >= 1 ? amount.toFixed(2) : amount.toFixed(4)}`;
}
