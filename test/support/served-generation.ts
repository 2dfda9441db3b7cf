import { onTestFinished } from "vitest";
import type { TestRepository } from "./repositories.ts";
import { startServeProcess, type ServedGeneration } from "./serve-process.ts";

/** As `startServeProcess`; killed when the test ends, if it still runs. */
export async function startServe(
  repository: Pick<TestRepository, "env">,
  args: readonly string[],
  under: readonly string[] = [],
): Promise<ServedGeneration> {
  const starting = startServeProcess(repository.env, args, under);
  // before it is ready: a test that runs out of time meanwhile leaves nothing behind either
  onTestFinished(async () => {
    const served = await starting.catch(() => undefined);
    await served?.end("SIGKILL");
  });
  return await starting;
}
