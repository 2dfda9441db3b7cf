import { fileURLToPath } from "node:url";
import { AppError } from "../errors.ts";

/** Where a repository in a bucket is. What is undefined is left to the AWS SDK: environment, profile files, AWS itself. */
export interface S3Location {
  readonly kind: "s3";
  readonly bucket: string;
  /** "" or a path that ends in "/". */
  readonly prefix: string;
  readonly endpoint: string | undefined;
  readonly region: string | undefined;
  readonly pathStyle: boolean | undefined;
}

export interface DirectoryLocation {
  readonly kind: "directory";
  readonly path: string;
}

export type Location = S3Location | DirectoryLocation;

const FORM = "write s3://BUCKET/PREFIX, a path or file:///PATH";
const OPTIONS: readonly string[] = ["endpoint", "region", "path-style"];
/** AWS "General purpose bucket naming rules", with the capitals and underscores that older servers allow. */
const BUCKET = /^[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]$/;
const PREFIX = /^[A-Za-z0-9_-][A-Za-z0-9._-]*(?:\/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$/;

/**
 * Reads a repository's location:
 *
 *     s3://bucket/prefix?endpoint=http://host:9000&region=eu-west-1&path-style=true
 *     file:///var/backups
 *     /var/backups      a path, also a relative one
 *
 * @throws AppError E_LOCATION (usage).
 */
export function parseLocation(text: string): Location {
  if (text.trim() === "") throw malformed(text, FORM);
  const scheme = /^([A-Za-z][A-Za-z0-9+.-]*):\/\//.exec(text)?.[1]?.toLowerCase();
  if (scheme === undefined) {
    if (/^(s3|file):/i.test(text)) throw malformed(text, FORM);
    return { kind: "directory", path: text };
  }
  if (scheme === "file") return { kind: "directory", path: filePath(text) };
  if (scheme === "s3") return s3Location(text);
  throw malformed(text, `there is no ${scheme}: store; ${FORM}`);
}

function filePath(text: string): string {
  try {
    return fileURLToPath(text);
  } catch (error) {
    throw malformed(text, "write file:///PATH with three slashes", error);
  }
}

function s3Location(text: string): S3Location {
  const [, rest = "", query = ""] = /^s3:\/\/([^?]*)\??(.*)$/i.exec(text) ?? [];
  if (/[@#]/.test(rest))
    throw malformed(text, "credentials come from the environment or a profile, not the URL");
  const slash = rest.indexOf("/");
  const bucket = slash < 0 ? rest : rest.slice(0, slash);
  if (!BUCKET.test(bucket)) throw malformed(text, `"${bucket}" cannot be a bucket's name`);
  const path = slash < 0 ? "" : rest.slice(slash + 1).replace(/\/$/, "");
  if (path !== "" && !PREFIX.test(path)) {
    throw malformed(text, "the prefix is of letters, digits and . _ - with single slashes between");
  }
  const options = new URLSearchParams(query);
  for (const name of options.keys()) {
    if (!OPTIONS.includes(name))
      throw malformed(text, `no option "${name}"; there are ${OPTIONS.join(", ")}`);
    if (options.getAll(name).length > 1) throw malformed(text, `"${name}" is given twice`);
  }
  return {
    kind: "s3",
    bucket,
    prefix: path === "" ? "" : `${path}/`,
    endpoint: endpointOf(text, options.get("endpoint")),
    region: options.get("region") ?? undefined,
    pathStyle: booleanOf(text, options.get("path-style")),
  };
}

function endpointOf(text: string, value: string | null): string | undefined {
  if (value === null) return undefined;
  const url = URL.parse(value);
  if (url === null || !/^https?:$/.test(url.protocol) || url.username !== "" || url.search !== "") {
    throw malformed(text, "the endpoint is http://HOST:PORT or https://HOST:PORT");
  }
  return value.replace(/\/$/, "");
}

function booleanOf(text: string, value: string | null): boolean | undefined {
  if (value === null) return undefined;
  if (value !== "true" && value !== "false") throw malformed(text, "path-style is true or false");
  return value === "true";
}

function malformed(text: string, why: string, cause?: unknown): AppError {
  const shown = text.replace(/\/\/[^/@]*@/, "//…@"); // somebody's keys may stand there
  return new AppError("usage", "E_LOCATION", `Not a repository location: "${shown}"; ${why}`, {}, cause);
}
