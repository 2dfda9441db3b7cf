import { parseSize } from "../../bytes/size.ts";
import { AppError, hasCode } from "../../errors.ts";

/** What rewriting may leave, and may take. */
export interface RewriteLimits {
  /** Dead bytes that may stay in packs that are in use: bytes, or a share of all bytes of these packs. */
  readonly maxUnused: number | { readonly percent: number };
  /** Stored bytes that one run copies at most. */
  readonly maxRepackBytes: number;
}

/** As restic's: a twentieth of what is stored may be dead, and one run moves whatever it takes. */
export const DEFAULT_REWRITE_LIMITS: RewriteLimits = {
  maxUnused: { percent: 5 },
  maxRepackBytes: Infinity,
};

/**
 * What may stay dead, as people write it: `5%`, `20GiB`, `0`, or `unlimited`, which rewrites nothing for the sake of space.
 * @throws AppError E_MAX_UNUSED (usage).
 */
export function parseMaxUnused(text: string): RewriteLimits["maxUnused"] {
  if (text === "unlimited") return Infinity;
  const percent = /^(\d{1,3}(?:\.\d+)?)%$/.exec(text);
  if (percent !== null && Number(percent[1]) <= 100) return { percent: Number(percent[1]) };
  const message = `Not what may stay unused: "${text}"; write 5%, 20GiB or unlimited`;
  return sizeOr(text, new AppError("usage", "E_MAX_UNUSED", message));
}

/**
 * What one run may copy, as people write it: `50GiB`, `0` or `unlimited`.
 * @throws AppError E_MAX_REPACK (usage).
 */
export function parseMaxRepack(text: string): number {
  if (text === "unlimited") return Infinity;
  const message = `Not a number of bytes that may be copied: "${text}"; write 50GiB or unlimited`;
  return sizeOr(text, new AppError("usage", "E_MAX_REPACK", message));
}

function sizeOr(text: string, refusal: AppError): number {
  try {
    return parseSize(text);
  } catch (error) {
    throw hasCode(error, "E_SIZE") ? refusal : error;
  }
}
