// Bundles the functions into dist-lambda/, or into the folder that is named, in place of what is there: one .mjs a handler, what
// they share beside them, and the worker thread's file, which src/chunk/workers.ts looks for next to itself. Nothing else has to go
// into the zip but blockhaul.yaml.
import { readFileSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const at = (path) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const { version } = JSON.parse(readFileSync(at("package.json"), "utf8"));
const outdir = process.argv[2] ?? at("dist-lambda");

rmSync(outdir, { recursive: true, force: true });
await build({
  entryPoints: {
    dispatch: at("src/lambda/dispatch.ts"),
    pull: at("src/lambda/pull.ts"),
    maintain: at("src/lambda/maintain.ts"),
    watch: at("src/lambda/watch.ts"),
    worker: at("src/chunk/worker.ts"),
  },
  outdir,
  outExtension: { ".js": ".mjs" },
  bundle: true,
  splitting: true,
  minify: true,
  keepNames: true, // the SDK's errors are told apart by their names
  sourcemap: false,
  platform: "node",
  target: "node22",
  format: "esm",
  mainFields: ["module", "main"],
  define: { BLOCKHAUL_VERSION: JSON.stringify(version) },
  // for packages that are CommonJS inside
  banner: {
    js: 'import { createRequire as makeRequire } from "node:module"; const require = makeRequire(import.meta.url);',
  },
  logLevel: "warning",
});
