import { hash } from "node:crypto";
import { readFileSync, statSync } from "node:fs";

/** A shorter one may stand in an output by chance, or be a word of ours. */
const LENGTH_MIN = 8;
/** What a file of secrets may have, bytes: others (a device, say) are tests of what is refused. */
const FILE_MAX = 4096;
/** Variables that hold a secret; with `_FILE` and `_COMMAND` behind them they tell where it is. */
const VARIABLES = [
  "AWS_SECRET_ACCESS_KEY",
  "AWS_SESSION_TOKEN",
  "BLOCKHAUL_PASSWORD",
  "BLOCKHAUL_NEW_PASSWORD",
];

/**
 * What a program with this environment and these arguments knows and must never print: passwords, also those in files
 * and in the quotes of commands, S3 secrets, keys for TLS.
 */
export function secretsOf(
  environment: Readonly<Record<string, string | undefined>>,
  args: readonly string[] = [],
): string[] {
  const found = VARIABLES.flatMap((name) => [
    environment[name],
    ...fileOf(environment[`${name}_FILE`]),
    ...quotedIn(environment[`${name}_COMMAND`]),
  ]);
  for (const arg of args) {
    const psk = /[?&]tls-psk-file=([^&]+)/.exec(arg)?.[1];
    if (psk !== undefined) {
      found.push(
        ...fileOf(decodeURIComponent(psk)).flatMap((text) =>
          text.split("\n").map((line) => line.split(":").at(-1)),
        ),
      );
    }
  }
  return [...new Set(found.filter((one) => one !== undefined))].filter((one) => one.length >= LENGTH_MIN);
}

/**
 * Fails when a secret stands in an output: as it is, escaped for JSON or a URL, in hexadecimal or base64, or as its
 * SHA-256.
 *
 * @param what names the output in the error, which does not repeat the secret.
 */
export function expectNoSecrets(secrets: readonly string[], output: string, what: string): void {
  for (const [number, secret] of secrets.entries()) {
    const form = formsOf(secret).find(([, text]) => output.includes(text));
    if (form !== undefined) throw new Error(`${what} shows secret ${number + 1} of the test, ${form[0]}`);
  }
}

function formsOf(secret: string): [string, string][] {
  const bytes = Buffer.from(secret);
  return [
    ["as it is", secret],
    ["escaped for JSON", JSON.stringify(secret).slice(1, -1)],
    ["escaped for a URL", encodeURIComponent(secret)],
    ["in hexadecimal", bytes.toString("hex")],
    ["in base64", bytes.toString("base64").replace(/=+$/, "")],
    ["as its SHA-256", hash("sha256", bytes)],
  ];
}

function fileOf(path: string | undefined): string[] {
  try {
    if (path === undefined || !statSync(path).isFile() || statSync(path).size > FILE_MAX) return [];
    return [readFileSync(path, "utf8").replace(/\r?\n$/, "")];
  } catch {
    return []; // a test of a file that is not there
  }
}

/** `printf '%s' 'the password'`; not the form, and not a path. */
function quotedIn(command: string | undefined): string[] {
  const texts = [...(command ?? "").matchAll(/'([^'\n]*)'/g)].map(([, text]) => text!);
  return texts.filter((text) => !text.startsWith("/") && !text.includes("%"));
}
