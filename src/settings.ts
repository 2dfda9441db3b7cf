import { homedir } from "node:os";
import { join, parse } from "node:path";
import { AppError } from "./errors.ts";
import { isNbdUri, parseNbdUri, type NbdAddress } from "./nbd/uri.ts";

type Environment = Readonly<Record<string, string | undefined>>;

/** Where the repository is and where its local advice (the dedup index) is kept. */
export interface RepositorySettings {
  readonly location: string;
  readonly cacheDir: string;
}

/** @throws AppError E_NO_REPOSITORY_GIVEN (usage). */
export function repositorySettings(
  flags: { readonly repository?: string; readonly cacheDir?: string },
  environment: Environment,
): RepositorySettings {
  const location = flags.repository ?? environment["BLOCKHAUL_REPOSITORY"];
  if (location === undefined || location === "") {
    throw new AppError(
      "usage",
      "E_NO_REPOSITORY_GIVEN",
      "Which repository? Give -r s3://BUCKET/PREFIX or a directory, or set BLOCKHAUL_REPOSITORY",
    );
  }
  const home = environment["XDG_CACHE_HOME"] ?? join(homedir(), ".cache");
  return {
    location,
    cacheDir: flags.cacheDir ?? environment["BLOCKHAUL_CACHE_DIR"] ?? join(home, "blockhaul"),
  };
}

/**
 * The file of jobs. Not one of the working directory unless it is named: its hooks are run, and nobody expects that of a folder
 * that they are in.
 */
export function jobFilePath(flag: string | undefined, environment: Environment): string {
  return flag ?? (environment["BLOCKHAUL_CONFIG"] || "/etc/blockhaul/blockhaul.yaml");
}

/** @throws AppError E_QUEUE_URL (usage). */
export function parseQueueUrl(text: string): string {
  if (/^https?:\/\/[^\s/]+\/\S+$/.test(text)) return text;
  const message = `"${text}" is not the URL of a queue, as https://sqs.eu-central-1.amazonaws.com/123456789012/host-7.fifo`;
  throw new AppError("usage", "E_QUEUE_URL", message);
}

/**
 * The queue that an agent takes its orders from.
 *
 * @param queues of the file of jobs: URLs by name. @throws AppError E_NO_QUEUE_GIVEN, E_QUEUE_URL (usage).
 */
export function queueUrl(
  flag: string | undefined,
  queues: Readonly<Record<string, string>>,
  environment: Environment,
): string {
  const given = flag ?? environment["BLOCKHAUL_QUEUE_URL"] ?? "";
  if (given !== "") return Object.hasOwn(queues, given) ? queues[given]! : parseQueueUrl(given);
  const message =
    "Which queue? Give --queue with its URL, or its name in the file, or set BLOCKHAUL_QUEUE_URL";
  throw new AppError("usage", "E_NO_QUEUE_GIVEN", message);
}

/** Where notes for the watch are left; undefined: nowhere. */
export function notesLocation(flag: string | undefined, environment: Environment): string | undefined {
  return (flag ?? environment["BLOCKHAUL_NOTES"]) || undefined;
}

/** The price sheet that the environment names; undefined: the built-in one. */
export function pricesPath(environment: Environment): string | undefined {
  return environment["BLOCKHAUL_PRICES"] || undefined;
}

/** Where the environment says a password is to be had. */
export interface PasswordSettings {
  readonly how: "text" | "file" | "command";
  /** The variable that says so. */
  readonly variable: string;
  /** The password itself, a path, or a command line for `sh`. */
  readonly value: string;
}

/**
 * How to come by the repository's password; undefined when nothing is set. A variable that is set and empty counts, so
 * that `BLOCKHAUL_PASSWORD=$(something that failed)` is never taken for a wish to do without.
 *
 * @throws AppError E_PASSWORD_TWICE (usage).
 */
export function passwordSettings(environment: Environment): PasswordSettings | undefined {
  return onlyOne([
    { how: "text", variable: "BLOCKHAUL_PASSWORD", value: environment["BLOCKHAUL_PASSWORD"] },
    { how: "file", variable: "BLOCKHAUL_PASSWORD_FILE", value: environment["BLOCKHAUL_PASSWORD_FILE"] },
    {
      how: "command",
      variable: "BLOCKHAUL_PASSWORD_COMMAND",
      value: environment["BLOCKHAUL_PASSWORD_COMMAND"],
    },
  ]);
}

/** As `passwordSettings`, for the password that `key add` and `key passwd` set. @throws AppError E_PASSWORD_TWICE (usage). */
export function newPasswordSettings(environment: Environment): PasswordSettings | undefined {
  return onlyOne([
    { how: "text", variable: "BLOCKHAUL_NEW_PASSWORD", value: environment["BLOCKHAUL_NEW_PASSWORD"] },
    {
      how: "file",
      variable: "BLOCKHAUL_NEW_PASSWORD_FILE",
      value: environment["BLOCKHAUL_NEW_PASSWORD_FILE"],
    },
    {
      how: "command",
      variable: "BLOCKHAUL_NEW_PASSWORD_COMMAND",
      value: environment["BLOCKHAUL_NEW_PASSWORD_COMMAND"],
    },
  ]);
}

type Candidate = Omit<PasswordSettings, "value"> & { readonly value: string | undefined };

function onlyOne(candidates: readonly Candidate[]): PasswordSettings | undefined {
  const set = candidates.flatMap(({ value, ...rest }) => (value === undefined ? [] : { ...rest, value }));
  if (set.length < 2) return set[0];
  const names = set.map(({ variable }) => variable).join(" and ");
  throw new AppError("usage", "E_PASSWORD_TWICE", `Both ${names} are set; leave one`);
}

/** One disk to back up: its name in the generation and where it is exported. */
export interface DiskSettings {
  readonly name: string;
  readonly address: NbdAddress;
}

/** NBD exports that somebody holds still. */
export interface ExportsSettings {
  readonly kind: "nbd";
  /** The source's name in the repository. */
  readonly name: string;
  readonly disks: readonly DiskSettings[];
}

/** A running QEMU. */
export interface QmpSettings {
  readonly kind: "qmp";
  readonly name: string;
  /** Path of the monitor's socket. */
  readonly qmp: string;
  /** Names of the disks to back up; none: all. */
  readonly disks: readonly string[];
}

/** A domain of libvirt that runs. */
export interface LibvirtSettings {
  readonly kind: "libvirt";
  readonly name: string;
  /** Its name in libvirt, or its UUID. */
  readonly domain: string;
  /** Names of the disks to back up; none: all. */
  readonly disks: readonly string[];
}

/** Images that no VM runs on. */
export interface ImagesSettings {
  readonly kind: "image";
  readonly name: string;
  readonly images: readonly ImageSettings[];
}

export interface ImageSettings {
  /** Its name in the generation; undefined: the one that it had before, else `fallback`. */
  readonly disk: string | undefined;
  readonly fallback: string;
  /** As it was given. */
  readonly path: string;
}

export type SourceSettings = ExportsSettings | QmpSettings | LibvirtSettings | ImagesSettings;

const QMP_SCHEME = "qmp:";
const LIBVIRT_SCHEME = "libvirt:";
const IMAGE_SCHEME = "image:";

const NAME = /^[A-Za-z0-9._-]{1,128}$/;

/**
 * What to back up, from SOURCE (one NBD URI, image:PATH; or qmp:PATH or libvirt:DOMAIN, with `--disk NAME` for some of its
 * disks) or `--disk NAME=URI` repeated, all of one kind, and the name it is kept under.
 *
 * @throws AppError (usage) E_SOURCE, E_NO_SOURCE_NAME, E_DISK_TWICE and those of `parseNbdUri`.
 */
export function sourceSettings(
  source: string | undefined,
  diskFlags: readonly string[],
  nameFlag: string | undefined,
): SourceSettings {
  if (source !== undefined && isQmpSource(source)) {
    return {
      kind: "qmp",
      name: checkName(nameFlag ?? "", "a VM has none of its own"),
      qmp: qmpPath(source),
      disks: diskFlags,
    };
  }
  if (source !== undefined && isLibvirtSource(source)) {
    const domain = libvirtDomain(source);
    const name = checkName(nameFlag ?? domain, "the domain has none");
    return { kind: "libvirt", name, domain, disks: diskFlags };
  }
  if ((source === undefined) === (diskFlags.length === 0)) {
    throw new AppError(
      "usage",
      "E_SOURCE",
      "Give either one SOURCE (an NBD URI, image:PATH, libvirt:DOMAIN, or qmp:PATH of a QEMU monitor) or --disk NAME=URI, once for each disk",
    );
  }
  if (source === undefined ? diskFlags.some(isImageFlag) : isImageSource(source)) {
    return imagesSettings(source, diskFlags, nameFlag);
  }
  const disks = source === undefined ? diskFlags.map(parseDiskFlag) : [singleDisk(source)];
  refuseTwice(disks.map(({ name }) => name));
  const exportName = disks.length === 1 ? disks[0]!.address.exportName : "";
  return { kind: "nbd", name: checkName(nameFlag ?? exportName, "the export has no name"), disks };
}

function imagesSettings(
  source: string | undefined,
  diskFlags: readonly string[],
  nameFlag: string | undefined,
): ImagesSettings {
  if (source !== undefined) {
    const path = imagePath(source);
    const base = parse(path).name;
    const fallback = NAME.test(base) ? base : "disk";
    const name = checkName(nameFlag ?? base, "the file has no name that could be it");
    return { kind: "image", name, images: [{ disk: undefined, fallback, path }] };
  }
  const images = diskFlags.map((flag) => {
    const [disk, uri = ""] = splitOnce(flag);
    if (NAME.test(disk) && isImageSource(uri)) return { disk, fallback: disk, path: imagePath(uri) };
    const message = `Not NAME=image:PATH: "${flag}"; images and NBD exports do not go together`;
    throw new AppError("usage", "E_SOURCE", message);
  });
  refuseTwice(images.map(({ disk }) => disk));
  return { kind: "image", name: checkName(nameFlag ?? "", "several images have none"), images };
}

/** True for what is meant as an image that no VM runs on. */
export function isImageSource(source: string): boolean {
  return source.startsWith(IMAGE_SCHEME);
}

function isImageFlag(flag: string): boolean {
  return isImageSource(splitOnce(flag)[1] ?? "");
}

/** The path in image:PATH. @throws AppError E_SOURCE (usage). */
export function imagePath(source: string): string {
  const path = source.slice(IMAGE_SCHEME.length);
  if (path !== "") return path;
  throw new AppError("usage", "E_SOURCE", `Not an image: "${source}"; write image:/path/to/disk.qcow2`);
}

function refuseTwice(disks: readonly string[]): void {
  const twice = disks.find((disk, index) => disks.indexOf(disk) !== index);
  if (twice !== undefined) throw new AppError("usage", "E_DISK_TWICE", `Disk ${twice} is given twice`);
}

/** True for what is meant as the monitor of a running QEMU. */
export function isQmpSource(source: string): boolean {
  return source.startsWith(QMP_SCHEME);
}

/** The path of the monitor's socket in qmp:PATH. @throws AppError E_SOURCE (usage). */
export function qmpPath(source: string): string {
  const path = isQmpSource(source) ? source.slice(QMP_SCHEME.length) : "";
  if (path !== "") return path;
  throw new AppError("usage", "E_SOURCE", `Not a QEMU monitor: "${source}"; write qmp:/path/to/qmp.sock`);
}

/** True for what is meant as a domain of libvirt. */
export function isLibvirtSource(source: string): boolean {
  return source.startsWith(LIBVIRT_SCHEME);
}

/** The domain in libvirt:DOMAIN. @throws AppError E_SOURCE (usage). */
export function libvirtDomain(source: string): string {
  const domain = isLibvirtSource(source) ? source.slice(LIBVIRT_SCHEME.length) : "";
  if (domain !== "" && !/[\0\n]/.test(domain)) return domain;
  throw new AppError("usage", "E_SOURCE", `Not a domain of libvirt: "${source}"; write libvirt:DOMAIN`);
}

/** @param whyNone why there is none without --name. */
function checkName(name: string, whyNone: string): string {
  if (NAME.test(name)) return name;
  const hint = name === "" ? whyNone : `"${name}" has other characters than A-Z a-z 0-9 . _ -`;
  throw new AppError("usage", "E_NO_SOURCE_NAME", `Give the backup a name with --name NAME: ${hint}`);
}

function singleDisk(source: string): DiskSettings {
  if (!isNbdUri(source)) {
    throw new AppError(
      "usage",
      "E_SOURCE",
      `Not an NBD URI: "${source}"; write nbd://HOST/EXPORT, nbds://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH, or qmp:PATH, libvirt:DOMAIN, image:PATH`,
    );
  }
  const address = parseNbdUri(source);
  return { name: NAME.test(address.exportName) ? address.exportName : "disk", address };
}

function parseDiskFlag(flag: string): DiskSettings {
  const [name, uri] = splitOnce(flag);
  if (!NAME.test(name) || uri === undefined || !isNbdUri(uri)) {
    throw new AppError(
      "usage",
      "E_SOURCE",
      `Not NAME=NBD-URI: "${flag}"; for example --disk vda=nbd://127.0.0.1/vda`,
    );
  }
  return { name, address: parseNbdUri(uri) };
}

/** `--tag K=V` repeated. @throws AppError E_TAG (usage). */
export function parseTags(flags: readonly string[]): Record<string, string> {
  const tags: Record<string, string> = {};
  for (const flag of flags) {
    const [key, value] = splitOnce(flag);
    if (!/^[A-Za-z0-9._-]{1,64}$/.test(key) || value === undefined || value.length > 256) {
      throw new AppError(
        "usage",
        "E_TAG",
        `Not KEY=VALUE: "${flag}"; keys are of A-Z a-z 0-9 . _ -, values up to 256 characters`,
      );
    }
    tags[key] = value;
  }
  return tags;
}

function splitOnce(text: string): [string, string | undefined] {
  const at = text.indexOf("=");
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)];
}
