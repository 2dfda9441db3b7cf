// One prune by the built program's own code, in a process that does nothing else: its memory is the prune's. A directory
// counts no requests, so they are counted here, as S3 would. Argument: the repository's folder. Prints one JSON document.
import { openRepository } from "../../dist/repository/config.js";
import { DirectoryStore } from "../../dist/store/directory.js";
import { prune } from "../../dist/upkeep/prune/prune.js";

const PAGE = 1000;
const DAY = 24 * 3_600_000;

const [location] = process.argv.slice(2);
const inner = new DirectoryStore(location);
const sent = { get: 0, list: 0, write: 0 };
const store = new Proxy(inner, {
  get(target, name) {
    const value = Reflect.get(target, name, target);
    if (typeof value !== "function") return value;
    if (name === "list") {
      return async function* (...args) {
        let entries = 0;
        for await (const entry of value.apply(target, args)) {
          if (entries++ % PAGE === 0) sent.list++;
          yield entry;
        }
        if (entries === 0) sent.list++;
      };
    }
    const kind = /^get/.test(name) ? "get" : /^(put|replace|delete)/.test(name) ? "write" : undefined;
    return (...args) => {
      if (kind !== undefined) sent[kind]++;
      return value.apply(target, args);
    };
  },
});
const repository = await openRepository(store, new AbortController().signal);
const report = await prune(
  repository,
  {
    graceMs: DAY,
    dryRun: false,
    lookup: { graceMs: DAY, isGone: () => false },
    holder: { host: "bench", pid: process.pid },
    warn: (message) => console.error(message),
  },
  new AbortController(),
);
inner.close();
console.log(JSON.stringify({ ...report, sent, peakRssBytes: process.resourceUsage().maxRSS * 1024 }));
