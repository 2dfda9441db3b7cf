import { hasCode } from "../../errors.ts";
import { QmpClient } from "../qmp/client.ts";
import { clearLeftovers } from "../recovery.ts";
import { agentSocket } from "./agent-socket.ts";
import { FrozenGuest } from "./frozen-guest.ts";
import type { QemuGuardSetup } from "./guard.ts";
import { GuardProcess, RECOVERY_MS } from "./guard-process.ts";

/** The guard of a run on a QEMU whose monitor and guest agent we have. */

async function takeDown({ qmp, token, scratchDir }: QemuGuardSetup, signal: AbortSignal): Promise<void> {
  try {
    const client = await QmpClient.connect(qmp, signal, { greetingMs: RECOVERY_MS });
    try {
      await clearLeftovers(client, { token, scratchDir }, signal);
    } finally {
      await client.close();
    }
  } catch (error) {
    if (!hasCode(error, "E_QMP_CONNECT")) throw error; // else QEMU is gone
  }
}

new GuardProcess<QemuGuardSetup>((setup) => ({
  guest:
    setup.agent === undefined ? undefined : new FrozenGuest(agentSocket(setup.agent), setup.freezeBudgetMs),
  takeDown: (signal) => takeDown(setup, signal),
})).run();
