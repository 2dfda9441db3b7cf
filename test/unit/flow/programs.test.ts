import { access, readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test, vi } from "vitest";
import { startLeashed, runUndisturbed } from "../../../src/flow/programs.ts";
import { temporaryFolder } from "../../support/folder.ts";
import { failure } from "../../support/outcomes.ts";

/** Succeeds in a process group of its own: Ctrl-C does not reach it. */
const ALONE = `test "$(ps -o pgid= -p $$)" -ne "$(ps -o pgid= -p ${process.pid})"`;

test("what must not be disturbed runs out of reach of Ctrl-C", async () => {
  await runUndisturbed("sh", ["-c", ALONE], 20_000);
  expect(
    await failure(runUndisturbed("sh", ["-c", "echo one >&2; echo two >&2; exit 3"], 20_000)),
  ).toMatchObject({
    kind: "source",
    code: "E_PROGRAM",
    message: "sh failed: two",
  });
  expect(await failure(runUndisturbed("sh", ["-c", "kill -9 $$"], 20_000))).toMatchObject({
    message: "sh failed: ended with SIGKILL",
  });
  expect(await failure(runUndisturbed("no-such-program", [], 20_000))).toMatchObject({
    kind: "usage",
    code: "E_PROGRAM_MISSING",
  });
});

test("what takes too long is left to itself, not ended half-way", async () => {
  const folder = await temporaryFolder();
  const [go, done] = [join(folder, "go"), join(folder, "done")];
  const script = `while ! test -e ${go}; do sleep 0.01; done; touch ${done}`;
  expect(await failure(runUndisturbed("sh", ["-c", script], 50))).toMatchObject({
    message: "sh failed: it did not end within 0.05 s",
  });
  await runUndisturbed("touch", [go], 20_000);
  await vi.waitUntil(
    () =>
      access(done).then(
        () => true,
        () => false,
      ),
    { timeout: 20_000 },
  );
});

test("a leashed program is out of reach of Ctrl-C, and ends with its leash", async () => {
  const pidFile = join(await temporaryFolder(), "pid");
  const server = startLeashed("sh", ["-c", `${ALONE} || exit; echo $$ > ${pidFile}; exec sleep 600`]);
  await vi.waitUntil(async () => (await readFile(pidFile, "utf8").catch(() => "")) !== "", {
    timeout: 20_000,
  });
  const pid = Number(await readFile(pidFile, "utf8"));
  await server.stop();
  expect(() => process.kill(pid, 0)).toThrow("ESRCH");
  await expect(server.died).rejects.toMatchObject({ code: "E_PROGRAM" });
  await server.stop(); // once more does no harm
});

test("a leashed program that ends by itself says why", async () => {
  const server = startLeashed("sh", ["-c", "echo 'no disk' >&2; exit 1"]);
  await expect(server.died).rejects.toMatchObject({ kind: "source", message: "sh ended (1): no disk" });
  await server.stop();
  const missing = startLeashed("no-such-program", []);
  await expect(missing.died).rejects.toMatchObject({ kind: "usage", code: "E_PROGRAM_MISSING" });
  await missing.stop();
});
