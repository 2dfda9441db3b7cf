import { hash } from "node:crypto";
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import type { ChunkWorkers } from "../../src/chunk/workers.ts";
import { openRepository } from "../../src/repository/config.ts";
import { openStore } from "../../src/store/open.ts";
import { Backups } from "./backups.ts";
import type { ModelledVm, Picture } from "./modelled-vm.ts";
import { directoryRepository, type TestRepository } from "./repositories.ts";
import type { VmRun } from "./vm-runs.ts";

const never = new AbortController().signal;

/** A repository of a modelled VM, and what is known of it. */
export class StoryPlace {
  readonly repository: TestRepository;
  /** Disks whose bitmap since the newest generation nothing has happened to: they must be incremental. */
  readonly sound = new Set<string>();
  readonly #vm: ModelledVm;
  readonly #backups: Backups;
  readonly #committed = new Map<string, Picture>();

  private constructor(vm: ModelledVm, repository: TestRepository, backups: Backups) {
    this.#vm = vm;
    this.repository = repository;
    this.#backups = backups;
  }

  /** It all goes when the test ends. */
  static async make(vm: ModelledVm, workers: ChunkWorkers): Promise<StoryPlace> {
    const repository = await directoryRepository();
    const opened = await openRepository(await openStore(repository.location), never);
    return new StoryPlace(vm, repository, await Backups.start(opened, workers));
  }

  get newest(): string | undefined {
    return [...this.#committed.keys()].sort().at(-1);
  }

  /**
   * After a run, whatever became of it: at most one generation has come, it holds what the disks held at its instant,
   * and no other has gone.
   *
   * @returns its id.
   */
  async lookAfter(run: VmRun): Promise<string | undefined> {
    const ids = await this.#listed();
    expect(ids).toEqual(expect.arrayContaining([...this.#committed.keys()]));
    const fresh = ids.filter((id) => !this.#committed.has(id));
    expect(fresh.length, run.stderr).toBeLessThanOrEqual(1);
    if (run.code === 0) expect(fresh).toEqual([run.generation!.generation]);
    const [id] = fresh;
    if (id !== undefined) {
      this.#committed.set(id, this.#vm.pictures.get(id)!);
      this.sound.clear();
      for (const disk of await this.#expectRight(id)) this.sound.add(disk);
    }
    return id;
  }

  /** Of these disks there is one bitmap of the repository, that of its newest generation. */
  async expectOneBitmap(disks: readonly string[]): Promise<void> {
    const { repository } = this.#backups.repository.config;
    for (const { name, bitmaps } of (await this.#vm.vm.survey()).disks) {
      if (!disks.includes(name)) continue;
      const ours = bitmaps.map((bitmap) => bitmap.name).filter((bitmap) => bitmap.includes(repository));
      expect(ours, name).toEqual([`bk-${repository}-${this.newest}-${name}`]);
    }
  }

  /** Every generation that ever came is there and right, and nothing else is wrong. */
  async expectAllRight(): Promise<void> {
    expect((await this.#listed()).sort()).toEqual([...this.#committed.keys()].sort());
    for (const id of this.#committed.keys()) await this.#expectRight(id);
    expect((await this.#backups.verify()).problems).toEqual([]);
  }

  /** Somebody deletes a generation. */
  async delete(generation: string): Promise<void> {
    await rm(join(this.repository.location, "generations/vm", `${generation}.json`));
    this.#committed.delete(generation);
    this.sound.clear();
  }

  async #listed(): Promise<string[]> {
    const files = await readdir(join(this.repository.location, "generations/vm")).catch(() => []);
    return files.map((file) => file.replace(".json", ""));
  }

  /** @returns the disks of the generation. */
  async #expectRight(id: string): Promise<string[]> {
    const manifest = (await this.#backups.generations()).find(({ generation }) => generation === id)!;
    for (const disk of manifest.disks) {
      const restored = hash("sha256", await this.#backups.restore(disk));
      expect(restored, `${disk.name} of ${id}`).toBe(this.#committed.get(id)![disk.name]);
    }
    return manifest.disks.map(({ name }) => name);
  }
}
