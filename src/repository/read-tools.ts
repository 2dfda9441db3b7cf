import type { ChunkWorkers } from "../chunk/workers.ts";
import type { Repository } from "./config.ts";
import type { PackDirectories } from "./pack-reader.ts";

/** What everything that works on chunks shares; whoever made it closes it. */
export interface ReadTools {
  readonly repository: Repository;
  readonly directories: PackDirectories;
  readonly workers: ChunkWorkers;
}
