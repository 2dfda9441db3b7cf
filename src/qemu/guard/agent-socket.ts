import { GuestAgent } from "../guest-agent.ts";
import type { AgentDoor } from "./frozen-guest.ts";

/** A guest agent's socket, which serves one client. @param path of it. */
export function agentSocket(path: string): AgentDoor {
  return {
    name: `its agent at ${path}`,
    shared: false,
    byHand: "guest-fsfreeze-thaw, or fsfreeze --unfreeze in the guest",
    open: (freezeMs, signal) => GuestAgent.connect(path, signal, { freezeMs }),
  };
}
