import { mkdirSync } from "node:fs";
import { dirname } from "node:path";
import { DedupIndex } from "../../src/repository/dedup.ts";
import { memoryRepository } from "./memory-repository.ts";
import { storePacks } from "./packs.ts";

/*
 * A process of its own that uses a dedup database while others do: `dedup-process.ts FILE SEED`. Exits with 0 when
 * everything it put in was found and nothing was warned of.
 */
const [file, seed] = process.argv.slice(2) as [string, string];
const signal = new AbortController().signal;
const warn = (message: string): void => {
  console.error(message);
  process.exitCode = 1;
};

mkdirSync(dirname(file), { recursive: true });
const repository = memoryRepository();
for (let round = 0; round < 20; round++) {
  const index = await DedupIndex.open(
    { file, repository, scope: "source", source: `host${seed}`, warn },
    signal,
  );
  await index.sync(signal);
  const first = Number(seed) * 1e6 + round * 100;
  const ids = Array.from({ length: 100 }, (_, number) => first + number);
  const { completed, chunks } = await storePacks(repository, ids.slice(0, 50), ids.slice(50));
  for (const { id, pack, slot } of chunks) index.remember(id, pack, slot);
  for (const pack of completed) index.addPack(pack);
  for (const { id, pack, slot } of chunks) {
    const found = index.lookup(id);
    if (found?.pack !== pack || found.slot !== slot) warn(`Chunk in pack ${pack} slot ${slot} is lost`);
  }
  index.close();
}
