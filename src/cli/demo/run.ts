import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { formatSize, KiB, MiB } from "../../bytes/size.ts";
import { nbdExports } from "../../backup/nbd-exports.ts";
import type { BackupReport, BackupRequest } from "../../backup/request.ts";
import { runBackup } from "../../backup/run.ts";
import { AppError } from "../../errors.ts";
import { serveRawFile, type ServedRawFile } from "../../nbd/server/raw-disk.ts";
import { NbdServer } from "../../nbd/server/server.ts";
import { parseNbdUri } from "../../nbd/uri.ts";
import { createRepository } from "../../repository/config.ts";
import { NO_PASSWORD } from "../../repository/key-slots.ts";
import { repositoryStats } from "../../upkeep/stats.ts";
import { restoreDisk } from "../../restore/restore-disk.ts";
import { openTarget } from "../../restore/targets.ts";
import { openNewStore } from "../../store/open.ts";
import type { CliContext } from "../action.ts";
import { isGone, packageVersion, thisProcess } from "../process.ts";
import type { Session } from "../../session/session.ts";
import { withSession } from "../session.ts";
import { digestOf, makeDemoImage } from "./image.ts";

const BITMAP = "demo";
/** Writes that the "guest" makes between the two backups. */
const CHANGES = 40;

interface DemoOptions {
  readonly size: number;
  readonly keep: boolean;
}

/** Backs up, changes, backs up what changed, restores both, compares; says what it does on the way. */
export async function runDemo({ size, keep }: DemoOptions, cli: CliContext): Promise<void> {
  if (size < 64 * MiB) throw new AppError("usage", "E_DEMO_SIZE", "The demo's disk needs at least 64MiB");
  const folder = await mkdtemp(join(tmpdir(), "blockhaul-demo-"));
  try {
    const image = join(folder, "disk.raw");
    cli.output.info(`Making a disk of ${formatSize(size)} in ${folder}`);
    await makeDemoImage(image, size);
    const location = join(folder, "repository");
    const store = await openNewStore(location);
    await createRepository(store, {}, cli.run.signal).finally(() => store.close());
    const disk = await serveRawFile(image, { writable: true, dirtyBitmap: BITMAP });
    const server = await NbdServer.listen(new Map([["disk", disk]]), { path: join(folder, "nbd.sock") });
    try {
      const flags = { repository: location, cacheDir: join(folder, "cache") };
      const tell = (session: Session): Promise<void> =>
        tellStory({ folder, image, disk, uri: server.uri("disk"), session }, cli);
      await withSession(flags, cli, tell, NO_PASSWORD); // whatever the environment has for other repositories
    } finally {
      await server.close();
      await disk.close();
    }
  } finally {
    if (keep) cli.output.info(`Left in ${folder}`);
    else await rm(folder, { recursive: true, force: true });
  }
}

interface Stage {
  readonly folder: string;
  readonly image: string;
  readonly disk: ServedRawFile;
  readonly uri: string;
  readonly session: Session;
}

async function tellStory({ folder, image, disk, uri, session }: Stage, cli: CliContext): Promise<void> {
  const { output, run } = cli;
  const { signal } = run;
  const first = await backUp(session, uri, undefined, cli);
  output.info(`1. Full backup over NBD: ${describe(first)}`);
  const before = await digestOf(image);

  const written = await changeBlocks(disk, signal);
  output.info(
    `2. The guest writes ${formatSize(written)} in ${CHANGES} places; the dirty bitmap notes where`,
  );
  const second = await backUp(session, uri, first.manifest.generation, cli);
  output.info(`3. Incremental backup by the bitmap: ${describe(second)}`);
  const after = await digestOf(image);

  for (const [report, wanted] of [
    [first, before],
    [second, after],
  ] as const) {
    const path = join(folder, `${report.manifest.kind}.raw`);
    const startedMs = performance.now();
    await restore(report, path, session, cli);
    const rate = report.manifest.disks[0]!.size / ((performance.now() - startedMs) / 1000);
    if ((await digestOf(path)) !== wanted) {
      throw new AppError("bug", "E_DEMO", `The restored ${path} is not what was backed up`);
    }
    output.info(
      `4. Restored the ${report.manifest.kind} at ${formatSize(Math.round(rate))}/s: equal, byte for byte`,
    );
  }
  const stats = await repositoryStats(session.repository, signal);
  const stored = stats.packs.bytes + stats.layers.bytes + stats.index.bytes + stats.manifests.bytes;
  output.result(
    { first: first.stats, second: second.stats, logicalBytes: stats.logicalBytes, storedBytes: stored },
    () =>
      [
        `2 generations, ${formatSize(stats.logicalBytes)} if each were copied, stored in ${formatSize(stored)}:`,
        `${(stats.logicalBytes / stored).toFixed(1)} times less, in ${stats.packs.count} packs.`,
      ].join(" "),
  );
}

async function backUp(
  session: Session,
  uri: string,
  parent: string | undefined,
  { output, run }: CliContext,
): Promise<BackupReport> {
  const bitmap = parent === undefined ? undefined : BITMAP;
  const wish = { source: "demo", full: false, bitmap, parent };
  const request: BackupRequest = {
    ...session,
    source: "demo",
    connect: () =>
      Promise.resolve(nbdExports(wish, [{ name: "disk", address: parseNbdUri(uri) }], undefined)),
    tags: {},
    dedup: { scope: "repository", cacheDir: session.settings.cacheDir },
    holder: thisProcess(),
    isGone,
    writer: `blockhaul ${packageVersion()}`,
    warn: (message) => output.warn(message),
    progress: () => undefined,
    peakRssBytes: () => process.resourceUsage().maxRSS * 1024,
  };
  return await runBackup(request, run);
}

/** Small writes all over the disk, and one stretch of zeros, as a guest would make them: through the export. */
async function changeBlocks(disk: ServedRawFile, signal: AbortSignal): Promise<number> {
  const bytes = Buffer.alloc(16 * KiB, "changed ");
  const step = Math.floor(disk.size / CHANGES / 512) * 512;
  for (let change = 0; change < CHANGES - 1; change++) await disk.write!(change * step, bytes, signal);
  await disk.zero!(MiB, MiB, true, signal);
  return (CHANGES - 1) * bytes.length + MiB;
}

async function restore(
  report: BackupReport,
  path: string,
  session: Session,
  { run }: CliContext,
): Promise<void> {
  const disk = report.manifest.disks[0]!;
  const target = await openTarget(path, disk.size, { force: false }, run.signal);
  try {
    await restoreDisk(disk, target.disk, session, run, () => undefined);
    await target.finish(run.signal);
  } finally {
    await target.close();
  }
}

function describe({ stats }: BackupReport): string {
  const rate = formatSize(Math.round(stats.bytesRead / stats.seconds));
  return (
    `read ${formatSize(stats.bytesRead)} in ${stats.seconds.toFixed(1)} s (${rate}/s), zero ${formatSize(stats.bytesZero)}, ` +
    `known already ${formatSize(stats.bytesDeduplicated)}, stored ${formatSize(stats.bytesStored)} as ${formatSize(stats.bytesPacked)}`
  );
}
