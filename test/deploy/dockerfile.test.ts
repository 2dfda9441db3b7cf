import { spawnSync } from "node:child_process";
import { cp, mkdir, readFile, symlink, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { MiB } from "../../src/bytes/size.ts";
import { runCli } from "../support/cli.ts";
import { nbdkit } from "../support/exported-images.ts";
import { temporaryFolder } from "../support/folder.ts";
import { runLinter } from "../support/linters.ts";
import { cacheEnvironment } from "../support/repositories.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const DOCKERFILE = join(ROOT, "deploy/Dockerfile");

interface Stage {
  readonly image: string;
  readonly name: string | undefined;
  /** "COPY", and what stands behind it. */
  readonly steps: (readonly [string, string])[];
}

let stages: Stage[];

beforeAll(async () => {
  const lines = (await readFile(DOCKERFILE, "utf8"))
    .replace(/^#.*\n/gm, "")
    .replaceAll("\\\n", " ")
    .split("\n");
  stages = [];
  for (const line of lines.filter((one) => one !== "")) {
    const [, word, rest] = /^(\S+)\s+(.*)$/.exec(line)!;
    const [image = "", , name] = rest!.split(" "); // FROM image AS name
    if (word === "FROM") stages.push({ image, name, steps: [] });
    else stages.at(-1)!.steps.push([word!, rest!]);
  }
});

/** Does what a stage says, in a folder in place of /app; steps that only an image can take are left out. */
async function build(stage: Stage, app: string, others: ReadonlyMap<string, string>): Promise<void> {
  for (const [word, rest] of stage.steps) {
    if (word === "COPY") {
      const [, from, files] = /^(?:--from=(\S+) )?(.*)$/.exec(rest)!;
      const paths = files!.split(/\s+/);
      const to = join(app, paths.pop()!);
      for (const path of paths) {
        const source = from === undefined ? join(ROOT, path) : path.replace("/app", others.get(from)!);
        await cp(source, paths.length > 1 ? join(to, path) : to, { recursive: true });
      }
    } else if (word === "RUN" && /^npm ci(?!.*--omit)/.test(rest)) {
      await symlink(join(ROOT, "node_modules"), join(app, "node_modules")); // made of the same lock file
    } else if (word === "RUN" && rest.startsWith("npm ")) {
      const { status, stderr } = spawnSync(rest, { shell: true, cwd: app, encoding: "utf8" });
      expect(status, `${rest}: ${stderr}`).toBe(0);
    }
  }
}

test("hadolint finds nothing, and would", async () => {
  expect(runLinter("hadolint", DOCKERFILE)).toEqual({ status: 0, said: "" });
  const broken = join(await temporaryFolder(), "Dockerfile");
  await writeFile(broken, (await readFile(DOCKERFILE, "utf8")).replace(/^# hadolint .*$/m, ""));
  expect(runLinter("hadolint", broken).said).toContain("DL3008");
});

test("every stage stands on the Node that the tests run with, of one Debian", async () => {
  const { devDependencies } = JSON.parse(await readFile(join(ROOT, "package.json"), "utf8")) as {
    devDependencies: { node: string };
  };
  for (const { image } of stages) expect(image).toBe(`node:${devDependencies.node}-bookworm-slim`);
});

test("the last stage is not root, and starts the program", () => {
  const last = stages.at(-1)!.steps;
  expect(last.findLast(([word]) => word === "USER")).toEqual(["USER", "10001:10001"]);
  expect(last.find(([word]) => word === "ENTRYPOINT")?.[1]).toBe('["node", "/app/bin/blockhaul.js"]');
});

test("what is copied is what the build gets to see", async () => {
  const seen = (await readFile(`${DOCKERFILE}.dockerignore`, "utf8"))
    .split("\n")
    .filter((line) => line.startsWith("!"))
    .map((line) => line.slice(1));
  const copied = stages
    .flatMap(({ steps }) => steps)
    .filter(([word, rest]) => word === "COPY" && !rest.startsWith("--from"))
    .flatMap(([, rest]) => rest.split(/\s+/).slice(0, -1));
  expect([...new Set(copied)].sort()).toEqual(seen.sort());
});

test("from exactly those files a program comes that backs up", { timeout: 180_000 }, async () => {
  const apps = new Map<string, string>();
  for (const stage of stages) {
    const app = join(await temporaryFolder(), "app");
    await mkdir(app);
    await build(stage, app, apps);
    apps.set(stage.name ?? "", app);
  }
  const program = join(apps.get("")!, "bin/blockhaul.js");
  const version = await runCli(["--version"], { program });
  expect(version).toMatchObject({ code: 0, stderr: "" });
  const env = { ...(await cacheEnvironment()), BLOCKHAUL_REPOSITORY: join(await temporaryFolder(), "r") };
  expect(await runCli(["init"], { program, env })).toMatchObject({ code: 0 });
  const source = await nbdkit(["pattern", `${MiB}`]);
  const backup = await runCli(["backup", "--name", "web", source.uri], { program, env });
  expect(backup, "its threads found their code").toMatchObject({ code: 0 });
});
