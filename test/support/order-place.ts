import { randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished } from "vitest";
import { parseJobFile } from "../../src/jobs/job-file.ts";
import type { Runner } from "../../src/jobs/job.ts";
import type { JobFile } from "../../src/jobs/schema.ts";
import type { BackupOrder } from "../../src/queue/orders.ts";
import { createRepository, openRepository, type Repository } from "../../src/repository/config.ts";
import { loadGenerations } from "../../src/repository/generations.ts";
import type { Manifest } from "../../src/repository/manifest.ts";
import { openNewStore } from "../../src/store/open.ts";
import { startQemuNbd } from "./qemu-nbd.ts";

const WITHIN = (): AbortSignal => AbortSignal.timeout(30_000);

/** A source that is exported, a repository in a folder, and a file of jobs; removed with the test. */
export class OrderPlace {
  readonly folder: string;
  readonly image: string;
  readonly uri: string;

  private constructor(folder: string, image: string, uri: string) {
    this.folder = folder;
    this.image = image;
    this.uri = uri;
  }

  /** @param size bytes of the disk, which are random. */
  static async make(size = 1024 * 1024): Promise<OrderPlace> {
    const folder = await mkdtemp(join(tmpdir(), "blockhaul-orders-"));
    onTestFinished(() => rm(folder, { recursive: true, force: true }));
    const image = join(folder, "web.raw");
    await writeFile(image, randomBytes(size));
    const server = await startQemuNbd(["--read-only", "--format=raw", image]);
    onTestFinished(() => server.stop());
    return new OrderPlace(folder, image, server.uri);
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  get location(): string {
    return this.path("repository");
  }

  /** Makes the repository, small in every size. */
  async repository(): Promise<Repository> {
    const store = await openNewStore(this.location);
    onTestFinished(() => store.close());
    await createRepository(store, { chunkSize: 65_536, packSize: 1024 * 1024, partSize: 131_072 }, WITHIN());
    return await openRepository(store, WITHIN());
  }

  /** @param more fields of the job, as YAML. */
  text(more = "", location = this.location): string {
    return `repositories: { main: { url: "${location}" } }
sources: { web: { uri: "${this.uri}" }, gone: { uri: "nbd+unix:///x?socket=${this.path("gone.sock")}" } }
jobs:
  nightly:
    repository: main
    sources: [web, gone]
${more}
`;
  }

  file(more = ""): JobFile {
    const { file, problems } = parseJobFile(this.text(more), {});
    expect(problems).toEqual([]);
    return file!;
  }

  runner(more: Partial<Runner> = {}): Runner {
    return {
      environment: { PATH: process.env["PATH"] },
      holder: { host: "test", pid: 1 },
      isGone: () => false,
      writer: "test",
      peakRssBytes: () => 0,
      threads: 1,
      cacheDir: this.path("cache"),
      ...more,
    };
  }

  async generations(repository: Repository): Promise<Manifest[]> {
    return await loadGenerations(repository, undefined, WITHIN());
  }

  async bytes(): Promise<Buffer> {
    return await readFile(this.image);
  }
}

/** An order of a moment ago. */
export function orderFor(source: string, more: Partial<BackupOrder> = {}): BackupOrder {
  const scheduledAt = new Date(Date.now() - 60_000).toISOString();
  return { order: "backup", job: "nightly", source, scheduledAt, ...more };
}
