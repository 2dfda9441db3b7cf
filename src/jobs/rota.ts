import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { systemCode } from "../errors.ts";
import type { OpenJob } from "./job.ts";
import type { UpkeepStep } from "./upkeep.ts";

/** A timer that fires each day does so a little sooner or later: this part of a span may be missing. */
const EARLY = 0.1;

const schema = z.record(z.string(), z.record(z.string(), z.number()));

type Times = z.infer<typeof schema>;

/**
 * When this host last did a job's upkeep, by its own clock. It is advice, kept in the cache: where it is lost, a prune or a
 * verify is done once too often.
 */
export class Rota {
  readonly #path: string;
  readonly #job: string;

  constructor({ name, session }: OpenJob) {
    const { repository, settings } = session;
    this.#path = join(settings.cacheDir, `${repository.config.repository}.upkeep.json`);
    this.#job = name;
  }

  /** @param everyMs undefined: each time. @param nowMs milliseconds since 1970. */
  async isDue(step: UpkeepStep, everyMs: number | undefined, nowMs = Date.now()): Promise<boolean> {
    const last = (await this.#read())[this.#job]?.[step];
    if (everyMs === undefined || last === undefined) return true;
    return last > nowMs || nowMs - last >= everyMs * (1 - EARLY); // a clock that was ahead must not put it off for years
  }

  /** @param beganMs what was done well began then. */
  async done(step: UpkeepStep, beganMs: number): Promise<void> {
    const times = await this.#read();
    const mine = { ...times[this.#job], [step]: beganMs };
    const text = JSON.stringify({ ...times, [this.#job]: mine });
    await mkdir(join(this.#path, ".."), { recursive: true });
    const temporary = `${this.#path}.${String(beganMs)}.tmp`;
    await writeFile(temporary, text, { mode: 0o600 });
    await rename(temporary, this.#path);
  }

  /** What cannot be read counts as never. */
  async #read(): Promise<Times> {
    try {
      const parsed = schema.safeParse(JSON.parse(await readFile(this.#path, "utf8")));
      return parsed.success ? parsed.data : {};
    } catch (error) {
      if (error instanceof SyntaxError || systemCode(error) === "ENOENT") return {};
      throw error;
    }
  }
}
