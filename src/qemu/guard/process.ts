import { hasCode } from "../../errors.ts";
import { pause } from "../../flow/retry.ts";
import { QmpClient } from "../qmp/client.ts";
import { clearLeftovers } from "../recovery.ts";
import { agentSocket } from "./agent-socket.ts";
import { FrozenGuest } from "./frozen-guest.ts";
import type { QemuGuardSetup } from "./guard.ts";
import { GuardProcess } from "./guard-process.ts";

/** The guard of a run on a QEMU whose monitor and guest agent we have. */

/** How long taking down may take, the wait for the monitor included. */
const RECOVERY_MS = 300_000;

/** The pause before it is tried again. */
const RECOVERY_AGAIN_MS = 1000;

async function recover({ qmp, token, scratchDir }: QemuGuardSetup): Promise<void> {
  const late = AbortSignal.timeout(RECOVERY_MS);
  for (;;) {
    try {
      const client = await QmpClient.connect(qmp, late, { greetingMs: RECOVERY_MS });
      try {
        await clearLeftovers(client, { token, scratchDir }, late);
      } finally {
        await client.close();
      }
      return;
    } catch (error) {
      if (hasCode(error, "E_QMP_CONNECT")) return; // QEMU is gone
    }
    await pause(RECOVERY_AGAIN_MS, late);
  }
}

new GuardProcess<QemuGuardSetup>((setup) => ({
  guest:
    setup.agent === undefined ? undefined : new FrozenGuest(agentSocket(setup.agent), setup.freezeBudgetMs),
  recover: () => recover(setup),
})).run();
