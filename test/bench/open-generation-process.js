// One opening of a generation by the built program's own code, in a process that does nothing else: its memory is
// the opening's. Arguments: the repository's folder, the disk as its manifest has it. Prints one JSON document.
import { openRepository } from "../../dist/repository/config.js";
import { DiskMap } from "../../dist/repository/layer-stack.js";
import { DirectoryStore } from "../../dist/store/directory.js";

const LOOKUPS = 1000;

const [location, disk] = process.argv.slice(2);
const signal = new AbortController().signal;
const repository = await openRepository(new DirectoryStore(location), signal);
const started = performance.now();
const map = await DiskMap.open(repository, JSON.parse(disk), signal);
const openMs = performance.now() - started;
for (let lookup = 0; lookup < LOOKUPS; lookup++) {
  const chunk = Math.floor(Math.random() * map.chunks);
  for await (const run of map.runs(chunk, chunk + 1, signal)) {
    if (run.first !== chunk) throw new Error("a lookup answered for another chunk");
  }
}
const lookupsMs = performance.now() - started - openMs;
repository.store.close();
console.log(JSON.stringify({ openMs, lookupsMs, peakRssBytes: process.resourceUsage().maxRSS * 1024 }));
