import { resolve } from "node:path";
import { ImageSource, type WantedImage } from "../backup/images.ts";
import { DomainSource } from "../backup/libvirt-domain.ts";
import { nbdExports } from "../backup/nbd-exports.ts";
import { QemuSource } from "../backup/qemu-vm.ts";
import type { BackupRequest } from "../backup/request.ts";
import { imageFormat } from "../image/formats.ts";
import type { DomainOptions } from "../libvirt/point-in-time.ts";
import type { QemuSourceOptions } from "../qemu/point-in-time.ts";
import {
  sourceSettings,
  type ExportsSettings,
  type ImagesSettings,
  type LibvirtSettings,
  type QmpSettings,
} from "../settings.ts";
import type { SourceEntry } from "./schema.ts";

/** On disk rather than in memory, as /tmp often is: it has to hold what the guest overwrites while it is backed up. */
export const SCRATCH_DIR = "/var/tmp";

/** The longest that a guest stands frozen unless told otherwise, milliseconds. */
export const FREEZE_BUDGET_MS = 5000;

interface CommonWish {
  /** Read everything and stand on no earlier generation. */
  readonly full: boolean;
  /** NBD connections a disk; undefined: the client's default. */
  readonly connections: number | undefined;
}

/** A source and how it is to be backed up. */
export type SourceWish =
  | (CommonWish & {
      readonly source: ExportsSettings;
      /** A dirty bitmap of the exports, and the generation since which it has recorded. */
      readonly bitmap: string | undefined;
      readonly parent: string | undefined;
    })
  | (CommonWish & { readonly source: QmpSettings; readonly qemu: QemuSourceOptions })
  | (CommonWish & { readonly source: LibvirtSettings; readonly libvirt: DomainOptions })
  | (CommonWish & {
      readonly source: ImagesSettings;
      readonly images: readonly WantedImage[];
      /** Begin no bitmap in them. */
      readonly leave: boolean;
      warn(message: string): void;
    });

/** What a backup connects to its source with. @param repository its id, which names what is left in a QEMU. */
export function connectorOf(wish: SourceWish, repository: string): BackupRequest["connect"] {
  const { full, connections } = wish;
  const common = { source: wish.source.name, repository, full, connections };
  if ("qemu" in wish) {
    const vm = { ...wish.qemu, ...common };
    return (run, purpose, signal) => QemuSource.connect(vm, run, purpose, signal);
  }
  if ("libvirt" in wish) {
    const domain = { ...wish.libvirt, ...common };
    return (run, purpose, signal) => DomainSource.connect(domain, run, purpose, signal);
  }
  if ("images" in wish) {
    const images = { ...wish, ...common };
    return (_run, _purpose, signal) => ImageSource.connect(images, signal);
  }
  const { source, bitmap, parent } = wish;
  const heldStill = { source: source.name, full, bitmap, parent };
  return () => Promise.resolve(nbdExports(heldStill, source.disks, connections));
}

/** What an entry of a file of jobs asks for. @param name of the entry, and of the source in the repository. */
export function wishOf(name: string, entry: SourceEntry, warn: (message: string) => void): SourceWish {
  const { uri, uris, disks, connections } = entry;
  const exports = Object.entries(uris ?? {}).map(([disk, address]) => `${disk}=${address}`);
  const source = sourceSettings(uri, uri === undefined ? exports : (disks ?? []), name);
  const common = { full: false, connections };
  if (source.kind === "nbd") return { ...common, source, bitmap: undefined, parent: undefined };
  if (source.kind === "image") {
    const leave = entry.leave_images ?? false;
    return { ...common, source, images: wantedImages(source, entry.format), leave, warn };
  }
  const running = {
    freeze: entry.freeze ?? "auto",
    freezeBudgetMs: entry.freeze_budget ?? FREEZE_BUDGET_MS,
    scratchDir: entry.scratch ?? SCRATCH_DIR,
    scratchSizeMax: entry.scratch_size,
    disks,
    warn,
  };
  if (source.kind === "libvirt") {
    return { ...common, source, libvirt: { ...running, domain: source.domain, uri: entry.connect } };
  }
  const qemu: QemuSourceOptions = {
    ...running,
    qmp: source.qmp,
    agent: entry.guest_agent,
    fleecing: entry.fleecing ?? "auto",
  };
  return { ...common, source, qemu };
}

/** @param format of all of them; undefined: as their names tell. @throws AppError E_IMAGE_FORMAT (usage). */
export function wantedImages({ images }: ImagesSettings, format: string | undefined): WantedImage[] {
  return images.map((image) => ({
    ...image,
    path: resolve(image.path),
    format: imageFormat(image.path, format),
  }));
}
