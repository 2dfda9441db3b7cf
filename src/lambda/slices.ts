import { AppError } from "../errors.ts";

/** After so many invocations that came no further, another one would not either. */
const IDLE_MAX = 3;

/** More than this is no work for functions. */
const SLICES_MAX = 500;

/** What the order of a continuation says of those before. */
export interface Slices {
  readonly slices: number;
  readonly idle: number;
}

/**
 * Refuses to begin what was continued often enough in vain: its message goes where failures go.
 * @throws AppError E_NO_PROGRESS (usage).
 */
export function refuseIdle(continued: Slices | undefined, what: string): void {
  if (continued === undefined) return;
  const { slices, idle } = continued;
  if (idle < IDLE_MAX && slices < SLICES_MAX) return;
  const why =
    idle < IDLE_MAX ? `after ${slices} invocations it is not done` : `${idle} invocations came no further`;
  const message = `${what} does not fit into this function: ${why}; give it more time and memory, or do it on a host`;
  throw new AppError("usage", "E_NO_PROGRESS", message, { slices, idle });
}

/** What the next continuation says. */
export function nextSlice(continued: Slices | undefined, progressed: boolean): Slices {
  return { slices: (continued?.slices ?? 0) + 1, idle: progressed ? 0 : (continued?.idle ?? 0) + 1 };
}
