import { once } from "node:events";
import { isIP } from "node:net";
import { resolve } from "node:path";
import { Command, Option } from "commander";
import { formatSize, parseSize } from "../../bytes/size.ts";
import { AppError } from "../../errors.ts";
import { DEFAULT_PORT } from "../../nbd/constants.ts";
import type { ServedDisk } from "../../nbd/server/served-disk.ts";
import { NbdServer, type ServerPlace } from "../../nbd/server/server.ts";
import type { ServerTls } from "../../nbd/server/tls.ts";
import { certificatesIn, pskKeysIn } from "../../nbd/server/tls-files.ts";
import { parseNbdUri } from "../../nbd/uri.ts";
import type { ManifestDisk, StoredManifest } from "../../repository/manifest.ts";
import { resolveGeneration } from "../../repository/resolve-generation.ts";
import { DiskCache } from "../../serve/disk-cache.ts";
import { openExports, type ExportOptions } from "../../serve/exports.ts";
import { qemuArguments, qemuText } from "../../serve/qemu-arguments.ts";
import { removeStaleSocket } from "../../serve/stale-socket.ts";
import { withStandingPin } from "../../serve/standing-pin.ts";
import { TroubleLog } from "../../serve/trouble-log.ts";
import { action, type CliContext } from "../action.ts";
import { activatedSocket } from "../activation.ts";
import { packageVersion, thisProcess } from "../process.ts";
import type { Session } from "../../session/session.ts";
import { withSession, type RepositoryFlags } from "../session.ts";
import { pickDisk } from "./restore.ts";

interface Flags extends RepositoryFlags {
  readonly disk: readonly string[];
  readonly socket?: string;
  readonly listen?: string;
  readonly overlay?: string;
  readonly cacheMemory: string;
  readonly cacheDisk?: string;
  readonly cacheDiskSize: string;
  readonly tlsCertificates?: string;
  readonly tlsVerifyClient?: boolean;
  readonly tlsPsk?: string;
  readonly printQemu?: boolean;
}

const LOOPBACK = "127.0.0.1";
/** Where images are, on most hosts; whoever has them elsewhere changes what is printed. */
const IMAGES = "/var/lib/libvirt/images";

export function serveCommand(): Command {
  return new Command("serve")
    .summary("serve disks of a generation over NBD")
    .description(
      `Serves disks of a generation as NBD exports, straight from the repository: nothing is copied first. Each disk is an
export of its name; a single one is the default export too. Prints their URIs when it is ready, and serves until it is
asked to end by SIGINT or SIGTERM.`,
    )
    .argument(
      "<generation>",
      "an id, a unique prefix of one, latest, NAME, NAME@latest, or NAME@2026-11-22T03:00Z",
    )
    .option("--disk <NAME>", "this disk only; repeat for several", collect, [])
    .addOption(new Option("--socket <PATH>", "listen on a Unix socket").conflicts("listen"))
    .option(
      "--listen <[ADDR:]PORT>",
      `listen on TCP; without --socket, systemd's socket or, without that, ${LOOPBACK}:${DEFAULT_PORT}`,
    )
    .option(
      "--overlay <FILE>",
      "let the disk be written: what is written goes to FILE (several disks: a folder)",
    )
    .option("--cache-memory <SIZE>", "memory for chunks that were read", "256MiB")
    .option("--cache-disk <DIR>", "also keep what was fetched in this folder, for later serves too")
    .option("--cache-disk-size <SIZE>", "most bytes in that folder", "10GiB")
    .addOption(
      new Option(
        "--tls-certificates <DIR>",
        "serve only by TLS, with server-cert.pem and server-key.pem",
      ).conflicts("tlsPsk"),
    )
    .option("--tls-verify-client", "let in only who has a certificate that DIR's ca-cert.pem signed")
    .option("--tls-psk <FILE>", 'serve only by TLS, to who has a key in this file of lines "user:hex"')
    .option("--print-qemu", "also print how QEMU starts on it, and how the disk moves to local storage then")
    .addHelpText(
      "after",
      `
Examples:
  blockhaul serve -r s3://my-bucket/vms web --socket /run/web.sock
  blockhaul serve -r /backup/vms db@2026-11-22T03:00Z --disk vda --disk vdb --listen 10810
  blockhaul serve -r /backup/vms web --socket /run/web.sock --overlay /var/lib/web.overlay
  blockhaul serve -r /backup/vms web --listen 192.0.2.7:10809 --tls-certificates /etc/pki/qemu`,
    )
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        const place = placeOf(flags);
        const tls = await tlsOf(flags);
        const diskSize = parseSize(flags.cacheDiskSize);
        const options = {
          cacheBytes: parseSize(flags.cacheMemory),
          profile: { say: (message: string) => cli.output.info(message) },
          ...(flags.overlay !== undefined && { overlay: resolve(flags.overlay) }),
        };
        await withSession(flags, cli, async (session) => {
          const { signal } = cli.run;
          const manifest = await resolveGeneration(session.repository, command.args[0]!, signal);
          const disks = disksOf(manifest, flags.disk);
          const pin = {
            purpose: "serve" as const,
            host: thisProcess().host,
            writer: `blockhaul ${packageVersion()}`,
            unpinned: (message: string) => cli.output.info(message),
            warn: (message: string) => cli.output.warn(message),
          };
          const serving = { manifest, disks, place, tls, options, printQemu: flags.printQemu === true };
          const warn = (message: string): void => cli.output.warn(message);
          await withDiskCache(flags.cacheDisk, diskSize, warn, async (disk) => {
            const withDisk = { ...serving, options: { ...options, ...(disk !== undefined && { disk }) } };
            await withStandingPin(session.repository, manifest, pin, signal, () =>
              serve(withDisk, session, cli),
            );
          });
        });
      }),
    );
}

async function withDiskCache(
  folder: string | undefined,
  bytesMax: number,
  warn: (message: string) => void,
  work: (cache: DiskCache | undefined) => Promise<void>,
): Promise<void> {
  const cache = folder === undefined ? undefined : await DiskCache.open(resolve(folder), bytesMax, warn);
  await work(cache).finally(() => cache?.close());
}

interface Serving {
  readonly manifest: StoredManifest;
  readonly disks: readonly ManifestDisk[];
  readonly place: ServerPlace;
  readonly tls: ServerTls | undefined;
  readonly options: ExportOptions;
  readonly printQemu: boolean;
}

/** Serves until the run is asked to end, which is how it is meant to end: no failure. */
async function serve(serving: Serving, session: Session, { output, run }: CliContext): Promise<void> {
  const { manifest, disks, place, tls, options } = serving;
  const { signal } = run;
  const exports = await openExports(session, manifest, disks, options, signal);
  try {
    if ("path" in place && !("fd" in place)) await removeStaleSocket(place.path);
    const trouble = new TroubleLog((message) => output.warn(message));
    const server = await NbdServer.listen(exports.disks, place, {
      ...(tls !== undefined && { tls }),
      onError: (error) => trouble.note(error),
    });
    try {
      if (!isPrivate(place) && tls === undefined) {
        output.warn(
          "Whoever reaches this port can read the disks: there is no TLS (--tls-certificates, --tls-psk)",
        );
      }
      sayReady(serving, exports.disks, server, output);
      if (!signal.aborted) await once(signal, "abort");
    } finally {
      await server.close();
    }
  } finally {
    await exports.close();
  }
}

function sayReady(
  { manifest, tls, printQemu }: Serving,
  disks: ReadonlyMap<string, ServedDisk>,
  server: NbdServer,
  output: CliContext["output"],
): void {
  const { generation, source } = manifest;
  const exports = [...disks].map(([disk, { size, readOnly }]) => {
    const uri = server.uri(disk);
    const served = { disk, uri, size, writable: !readOnly };
    const address = parseNbdUri(uri);
    const qemu = printQemu ? qemuArguments({ ...served, address, tls: tls?.type }, IMAGES) : undefined;
    return { ...served, ...(qemu && { qemu }) };
  });
  output.result({ generation, source, pid: process.pid, exports }, () =>
    exports.flatMap(({ uri, qemu }) => [uri, ...(qemu === undefined ? [] : [qemuText(qemu)])]).join("\n"),
  );
  for (const { disk, size, writable } of exports) {
    const how = writable ? "writable" : "read-only";
    output.info(
      `Serving ${disk} of ${source}, generation ${generation}: ${formatSize(size)}, ${how}; Ctrl-C ends it`,
    );
  }
}

/** In the order in which the generation has them. @throws AppError E_NO_DISK (notFound). */
export function disksOf(
  { disks, generation }: StoredManifest,
  names: readonly string[],
): readonly ManifestDisk[] {
  const picked = new Set(names.map((name) => pickDisk(disks, name, generation)));
  return picked.size === 0 ? disks : disks.filter((disk) => picked.has(disk));
}

/** @throws AppError E_LISTEN (usage). */
function placeOf({ socket, listen }: Flags): ServerPlace {
  if (socket !== undefined) return { path: resolve(socket) };
  if (listen === undefined) return activatedSocket(process.env) ?? { host: LOOPBACK, port: DEFAULT_PORT };
  const match = /^(?:(.*):)?(\d{1,5})$/.exec(listen);
  const host = (match?.[1] ?? "").replace(/^\[(.*)\]$/, "$1") || LOOPBACK;
  const port = Number(match?.[2] ?? Number.NaN);
  if (port <= 65_535 && (isIP(host) > 0 || host === "localhost")) return { host, port };
  throw new AppError(
    "usage",
    "E_LISTEN",
    `Not an address to listen on: "${listen}"; write PORT, ADDR:PORT or [ADDR]:PORT with an IP address`,
  );
}

/** Out of other machines' reach, as far as the place itself tells. */
function isPrivate(place: ServerPlace): boolean {
  if (!("host" in place)) return true;
  return place.host === "localhost" || place.host === "::1" || place.host.startsWith("127.");
}

/** @throws AppError E_NBD_TLS_FILES, E_TLS_FLAGS (usage). */
async function tlsOf(flags: Flags): Promise<ServerTls | undefined> {
  const verify = flags.tlsVerifyClient === true;
  if (flags.tlsPsk !== undefined) return await pskKeysIn(flags.tlsPsk);
  if (flags.tlsCertificates !== undefined) return await certificatesIn(flags.tlsCertificates, verify);
  if (!verify) return undefined;
  throw new AppError("usage", "E_TLS_FLAGS", "--tls-verify-client needs --tls-certificates DIR");
}

function collect(value: string, previous: readonly string[]): readonly string[] {
  return [...previous, value];
}
