import { pricesPath } from "../settings.ts";
import { isBilled, readPrices, type Prices } from "../store/prices.ts";
import type { ObjectStore } from "../store/store.ts";

/**
 * What goes for a store: the sheet that `BLOCKHAUL_PRICES` names, or AWS's; undefined for a directory, which nobody bills.
 *
 * @throws AppError E_PRICES (usage).
 */
export async function pricesOf(store: ObjectStore): Promise<Prices | undefined> {
  const sheet = await readPrices(pricesPath(process.env));
  return isBilled(store.location) ? sheet : undefined;
}
