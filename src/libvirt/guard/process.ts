import { FrozenGuest } from "../../qemu/guard/frozen-guest.ts";
import { GuardProcess } from "../../qemu/guard/guard-process.ts";
import { agentOf } from "../agent.ts";
import { DomainHandle } from "../domain.ts";
import { clearDomain } from "../recovery.ts";
import { Virsh } from "../virsh.ts";
import type { DomainGuardSetup } from "./guard.ts";

/** The guard of a run on a domain of libvirt. */

new GuardProcess<DomainGuardSetup>(({ uri, name, uuid, freezes, freezeBudgetMs, token, scratchDir }) => {
  const domain = new DomainHandle(new Virsh(uri), name, uuid);
  return {
    guest: freezes ? new FrozenGuest(agentOf(domain), freezeBudgetMs) : undefined,
    takeDown: async (signal) => {
      await clearDomain(domain, { token, scratchDir }, signal);
    },
  };
}).run();
