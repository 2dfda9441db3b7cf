import { Command } from "commander";
import { formatSize } from "../../bytes/size.ts";
import { resolveGeneration } from "../../repository/resolve-generation.ts";
import { loadHolds, type Hold, type Holds } from "../../repository/holds.ts";
import type { Manifest } from "../../repository/manifest.ts";
import { generationKey } from "../../repository/names.ts";
import { lockedUntil } from "../../repository/object-lock.ts";
import { action } from "../action.ts";
import { generationDocument } from "../documents.ts";
import { withRepository, type RepositoryFlags } from "../session.ts";

export function showCommand(): Command {
  return new Command("show")
    .summary("show one generation")
    .argument(
      "<generation>",
      "an id, a unique prefix of one, latest, NAME, NAME@latest, or NAME@2026-11-22T03:00Z",
    )
    .addHelpText("after", "\nExample:\n  blockhaul show -r s3://my-bucket/vms web@latest")
    .action(
      action(async (cli, command) => {
        await withRepository(command.optsWithGlobals<RepositoryFlags>(), cli, async (repository) => {
          const manifest = await resolveGeneration(repository, command.args[0]!, cli.run.signal);
          const { encrypted } = repository.config;
          const holds = await loadHolds(repository, manifest.source, cli.run.signal, (error) =>
            cli.output.warn(error.message),
          );
          const key = generationKey(manifest.source, manifest.generation);
          const until = (await lockedUntil(repository, [key], cli.run.signal)).get(key);
          const protectedUntil = until?.toISOString() ?? null;
          const document = { ...generationDocument(manifest, holds), protectedUntil, encrypted };
          cli.output.result(document, () => describe(manifest, holds, protectedUntil, encrypted));
        });
      }),
    );
}

function describe(
  manifest: Manifest,
  holds: Holds,
  protectedUntil: string | null,
  encrypted: boolean,
): string {
  const { stats } = manifest;
  const lines = [
    ["generation", manifest.generation],
    ["source", manifest.source],
    ["created", manifest.committedAt],
    ["kind", `${manifest.kind} (${manifest.reason})`],
    ["parent", manifest.parent?.generation ?? "none"],
    ["consistency", manifest.consistency],
    ["encrypted", encrypted ? "yes" : "no"],
    ["read", `${formatSize(stats.bytesRead)}, of which unchanged ${formatSize(stats.bytesUnchanged)}`],
    ["zero", formatSize(stats.bytesZero)],
    ["deduplicated", formatSize(stats.bytesDeduplicated)],
    ["stored", `${formatSize(stats.bytesStored)} as ${formatSize(stats.bytesPacked)}`],
    ...Object.entries(manifest.tags).map(([key, value]) => ["tag", `${key}=${value}`]),
    ...(holds.has(manifest.generation) ? [["HELD", heldText(holds.get(manifest.generation))]] : []),
    ...(protectedUntil === null ? [] : [["protected", `until ${protectedUntil}`]]),
    ...manifest.disks.map((disk) => [
      "disk",
      `${disk.name}: ${formatSize(disk.size)} (${disk.size} bytes), ${disk.layers.length} layers, ${disk.kind}: ${disk.reason}`,
    ]),
  ];
  return lines.map(([name, value]) => `${name!.padEnd(13)} ${value!}`).join("\n");
}

function heldText(hold: Hold | undefined): string {
  if (hold === undefined) return "by a record that is damaged";
  return `since ${hold.heldAt}${hold.reason === null ? "" : `: ${hold.reason}`}`;
}
