import { pricesPath } from "../settings.ts";
import { DEFAULT_PRICES, readPrices, type Prices } from "../store/prices.ts";
import type { ObjectStore } from "../store/store.ts";

/**
 * What goes for a store: the sheet that `BLOCKHAUL_PRICES` names, or AWS's; undefined for a directory, which nobody bills.
 *
 * @throws AppError E_PRICES (usage).
 */
export async function pricesOf(store: ObjectStore): Promise<Prices | undefined> {
  const path = pricesPath(process.env);
  const sheet = path === undefined ? DEFAULT_PRICES : await readPrices(path);
  return store.location.startsWith("s3://") ? sheet : undefined;
}
