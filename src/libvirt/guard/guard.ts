import { extname } from "node:path";
import { FrozenGuest } from "../../qemu/guard/frozen-guest.ts";
import { DEFAULT_FREEZE_BUDGET_MS, DEFAULT_SILENCE_MS, Guard } from "../../qemu/guard/guard.ts";
import type { GuardSetup } from "../../qemu/guard/messages.ts";
import { agentOf } from "../agent.ts";
import type { DomainHandle } from "../domain.ts";

/** What the guard of a run on a domain is told. */
export interface DomainGuardSetup extends GuardSetup {
  readonly uri: string | undefined;
  readonly name: string;
  readonly uuid: string;
  readonly freezes: boolean;
  readonly token: string;
  readonly scratchDir: string;
}

/** Next to this file, with its extension: .ts from the sources, .js from the build. */
const ENTRY = new URL(`./process${extname(import.meta.url)}`, import.meta.url);

/**
 * Starts the guard of a run on a domain: it alone freezes and thaws, and ends the run's backup job when the run dies.
 *
 * @throws as `Guard.launch`.
 */
export async function startDomainGuard(
  domain: DomainHandle,
  run: Pick<DomainGuardSetup, "freezes" | "freezeBudgetMs" | "token" | "scratchDir">,
  signal: AbortSignal,
): Promise<Guard> {
  const { virsh, name, uuid } = domain;
  const setup = { ...run, uri: virsh.uri, name, uuid, silenceMs: DEFAULT_SILENCE_MS };
  const guest = run.freezes ? () => new FrozenGuest(agentOf(domain), DEFAULT_FREEZE_BUDGET_MS) : undefined;
  return await Guard.launch({ entry: ENTRY, setup, guest }, signal);
}
