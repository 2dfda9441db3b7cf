#!/usr/bin/env node
// Plain JavaScript of the oldest kind, so that an old Node says what is missing instead of a syntax error.
var version = process.versions.node.split(".").map(Number);
if (version[0] < 22 || (version[0] === 22 && version[1] < 15)) {
  console.error(
    "blockhaul needs Node.js 22.15 or newer (built-in zstd and SQLite); this is " +
      process.versions.node +
      ". See https://nodejs.org/",
  );
  process.exit(2);
}
import("../dist/cli/main.js").then(function (cli) {
  return cli.main();
});
