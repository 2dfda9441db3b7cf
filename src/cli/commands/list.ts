import { Command } from "commander";
import { formatSize } from "../../bytes/size.ts";
import type { AppError } from "../../errors.ts";
import { lastDrills } from "../../repository/drills.ts";
import { loadGenerations } from "../../repository/generations.ts";
import type { ForgottenName } from "../../repository/forgotten.ts";
import { loadHolds } from "../../repository/holds.ts";
import type { Manifest } from "../../repository/manifest.ts";
import { generationKey, uuidTime } from "../../repository/names.ts";
import { lockedUntil } from "../../repository/object-lock.ts";
import { DEFAULT_GRACE_MS } from "../../upkeep/prune/grace.ts";
import { listReturnable } from "../../upkeep/restore-generation.ts";
import { action } from "../action.ts";
import { generationDocument } from "../documents.ts";
import { drillDocument, drillTable } from "../drill-text.ts";
import { table } from "../output.ts";
import { withRepository, type RepositoryFlags } from "../session.ts";

interface Flags extends RepositoryFlags {
  readonly source?: string;
  readonly forgotten?: boolean;
}

export function listCommand(): Command {
  return new Command("list")
    .alias("ls")
    .summary("list generations")
    .description("Lists generations, oldest first: when, what kind and why, what was read and stored.")
    .option("--source <NAME>", "only generations of this source")
    .option("--forgotten", "those that were forgotten, and can be brought back")
    .addHelpText("after", "\nExample:\n  blockhaul list -r s3://my-bucket/vms --source web")
    .action(
      action(async (cli, command) => {
        const flags = command.optsWithGlobals<Flags>();
        await withRepository(flags, cli, async (repository) => {
          if (flags.forgotten === true) {
            const names = await listReturnable(repository, flags.source, cli.run.signal);
            const documents = names.map(forgottenDocument);
            cli.output.result({ forgotten: documents }, () => forgottenText(documents));
            return;
          }
          let damaged: AppError | undefined;
          const onDamaged = (error: AppError): void => {
            damaged ??= error;
            cli.output.warn(error.message);
          };
          const loaded = await loadGenerations(repository, flags.source, cli.run.signal, onDamaged);
          const holds = await loadHolds(repository, flags.source, cli.run.signal, onDamaged);
          const manifests = loaded.toSorted((a, b) => Date.parse(a.committedAt) - Date.parse(b.committedAt));
          const keyOf = ({ source, generation }: Manifest): string => generationKey(source, generation);
          const locks = await lockedUntil(repository, manifests.map(keyOf), cli.run.signal);
          const withLocks = repository.config.objectLock !== undefined;
          const documents = manifests.map((manifest) => ({
            ...generationDocument(manifest, holds),
            protectedUntil: locks.get(keyOf(manifest))?.toISOString() ?? null,
          }));
          const drills = await lastDrills(repository, flags.source, cli.run.signal, onDamaged);
          if (damaged !== undefined && manifests.length === 0) throw damaged;
          cli.output.result({ generations: documents, drills: drills.map(drillDocument) }, () => {
            if (manifests.length === 0) return "No generations yet";
            const generations = table(
              [
                "GENERATION",
                "SOURCE",
                "CREATED",
                "KIND",
                "CONSISTENCY",
                "DISKS",
                "SIZE",
                "READ",
                "STORED",
                ...(withLocks ? ["PROTECTED UNTIL"] : []),
                "REASON",
              ],
              manifests.map((manifest) => [
                manifest.generation,
                manifest.source,
                manifest.committedAt.replace(/\.\d+Z$/, "Z"),
                manifest.kind,
                manifest.consistency,
                String(manifest.disks.length),
                formatSize(manifest.disks.reduce((sum, disk) => sum + disk.size, 0)),
                formatSize(manifest.stats.bytesRead),
                formatSize(manifest.stats.bytesPacked),
                ...(withLocks ? [locks.get(keyOf(manifest))?.toISOString().slice(0, 10) ?? "-"] : []),
                holds.has(manifest.generation) ? `HELD ${manifest.reason}` : manifest.reason,
              ]),
            );
            return drills.length === 0 ? generations : `${generations}\n\n${drillTable(drills)}`;
          });
          if (damaged !== undefined) throw damaged; // after the others were shown
        });
      }),
    );
}

interface ForgottenDocument {
  readonly generation: string;
  readonly source: string;
  readonly frozenAt: string;
  readonly forgottenAt: string;
  /** No prune with the usual grace takes it before. */
  readonly until: string;
}

function forgottenDocument({ generation, source, lastModified }: ForgottenName): ForgottenDocument {
  const frozenAt = new Date(uuidTime(generation) ?? 0).toISOString();
  const until = new Date(lastModified.getTime() + DEFAULT_GRACE_MS).toISOString();
  return { generation, source, frozenAt, forgottenAt: lastModified.toISOString(), until };
}

function forgottenText(documents: readonly ForgottenDocument[]): string {
  if (documents.length === 0) return "No generation can be brought back";
  const minute = (time: string): string => time.replace(/:\d\d\.\d+Z$/, "Z");
  return table(
    ["GENERATION", "SOURCE", "TAKEN", "FORGOTTEN", "CAN BE BROUGHT BACK"],
    documents.map(({ generation, source, frozenAt, forgottenAt, until }) => [
      generation,
      source,
      minute(frozenAt),
      minute(forgottenAt),
      `until the first prune after ${minute(until)}`,
    ]),
  );
}
