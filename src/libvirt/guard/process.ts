import { pause } from "../../flow/retry.ts";
import { FrozenGuest } from "../../qemu/guard/frozen-guest.ts";
import { GuardProcess } from "../../qemu/guard/guard-process.ts";
import { agentOf } from "../agent.ts";
import { DomainHandle } from "../domain.ts";
import { clearDomain } from "../recovery.ts";
import { Virsh } from "../virsh.ts";
import type { DomainGuardSetup } from "./guard.ts";

/** The guard of a run on a domain of libvirt. */

/** How long taking down may take, the wait for libvirt included. */
const RECOVERY_MS = 300_000;

/** The pause before it is tried again. */
const RECOVERY_AGAIN_MS = 1000;

async function recover(domain: DomainHandle, token: string, scratchDir: string): Promise<void> {
  const late = AbortSignal.timeout(RECOVERY_MS);
  for (;;) {
    try {
      await clearDomain(domain, { token, scratchDir }, late);
      return;
    } catch {
      await pause(RECOVERY_AGAIN_MS, late); // libvirt may be starting anew
    }
  }
}

new GuardProcess<DomainGuardSetup>(({ uri, name, uuid, freezes, freezeBudgetMs, token, scratchDir }) => {
  const domain = new DomainHandle(new Virsh(uri), name, uuid);
  return {
    guest: freezes ? new FrozenGuest(agentOf(domain), freezeBudgetMs) : undefined,
    recover: () => recover(domain, token, scratchDir),
  };
}).run();
