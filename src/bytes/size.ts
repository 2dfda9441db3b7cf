import { AppError } from "../errors.ts";

export const KiB = 1024;
export const MiB = 1024 * KiB;
export const GiB = 1024 * MiB;
export const TiB = 1024 * GiB;

const UNITS: Readonly<Record<string, number>> = {
  "": 1,
  B: 1,
  KiB,
  MiB,
  GiB,
  TiB,
  K: KiB,
  M: MiB,
  G: GiB,
  T: TiB,
};

/**
 * Bytes from what a person types: "256KiB", "64M", "1.5GiB", "4096". Powers of 1024.
 *
 * @throws AppError E_SIZE (usage) for anything else, negative, or not a whole number of bytes.
 */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z]*)$/.exec(text.trim());
  const unit = match === null ? undefined : UNITS[match[2]!];
  const bytes = match === null || unit === undefined ? NaN : Number(match[1]) * unit;
  if (!Number.isSafeInteger(bytes)) {
    throw new AppError(
      "usage",
      "E_SIZE",
      `Not a size: "${text}"; write bytes or a number with KiB, MiB, GiB or TiB`,
    );
  }
  return bytes;
}

/** "3.4 GiB", for people. */
export function formatSize(bytes: number): string {
  if (bytes < KiB) return `${bytes} B`;
  const [name, unit] =
    bytes < MiB ? ["KiB", KiB] : bytes < GiB ? ["MiB", MiB] : bytes < TiB ? ["GiB", GiB] : ["TiB", TiB];
  const value = bytes / unit;
  return `${value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${name}`;
}
