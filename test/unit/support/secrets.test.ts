import { hash } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { temporaryFolder } from "../../support/folder.ts";
import { expectNoSecrets, secretsOf } from "../../support/secrets.ts";

const PASSWORD = 'a "quoted" pass/word';

test.each([
  ["as it is", PASSWORD],
  ["escaped for JSON", JSON.stringify({ password: PASSWORD })],
  ["escaped for a URL", `?password=${encodeURIComponent(PASSWORD)}`],
  ["in hexadecimal", Buffer.from(PASSWORD).toString("hex")],
  ["in base64", Buffer.from(PASSWORD).toString("base64")],
  ["as its SHA-256", hash("sha256", PASSWORD)],
])("a secret in an output is found %s, and not repeated", (how, output) => {
  const look = (): void => expectNoSecrets([PASSWORD], `before ${output} after`, "The output");
  expect(look).toThrow(`The output shows secret 1 of the test, ${how}`);
  expect(() => expectNoSecrets([PASSWORD], "an output", "The output")).not.toThrow();
});

test("the secrets of a run are those of its environment, of the files it names, and of its arguments", async () => {
  const folder = await temporaryFolder();
  const [file, psk] = [join(folder, "password"), join(folder, "keys.psk")];
  await writeFile(file, "password in a file\n");
  await writeFile(psk, "alice:00112233445566778899aabbccddeeff\n");
  const environment = {
    AWS_SECRET_ACCESS_KEY: "secret of the bucket",
    BLOCKHAUL_PASSWORD: "short",
    BLOCKHAUL_PASSWORD_FILE: file,
    BLOCKHAUL_NEW_PASSWORD_COMMAND: `printf '%s' 'new password'; cat '${file}'`,
  };
  const args = ["backup", `nbds://alice@host/x?tls-psk-file=${encodeURIComponent(psk)}`];
  expect(secretsOf(environment, args).sort()).toEqual([
    "00112233445566778899aabbccddeeff",
    "new password",
    "password in a file",
    "secret of the bucket",
  ]);
  expect(secretsOf({ BLOCKHAUL_PASSWORD_FILE: "/dev/zero" })).toEqual([]);
});
