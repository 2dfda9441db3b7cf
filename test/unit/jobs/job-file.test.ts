import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { describe, expect, test } from "vitest";
import { parseJobFile, type JobFileProblem } from "../../../src/jobs/job-file.ts";
import { jobFileJsonSchema, type JobFile } from "../../../src/jobs/schema.ts";

const GOOD = `
repositories:
  main:
    url: s3://bucket/vms
    password_file: /etc/blockhaul/password
sources:
  web:
    uri: qmp:/run/web/qmp.sock
    guest_agent: /run/web/qga.sock
    freeze: require
    freeze_budget: 3s
    scratch_size: 20GiB
    disks: [vda]
    tags: { os: debian }
    queue: host-7
  db:
    uris: { vda: "nbd://h/vda", vdb: "nbd://h/vdb" }
    connections: 2
queues: { host-7: "https://sqs.eu-central-1.amazonaws.com/123456789012/host-7.fifo" }
jobs:
  nightly:
    repository: main
    sources: [web, db]
    retention: { keep_daily: 14, keep_within: 36h, keep_tags: [a=1], timezone: Europe/Berlin }
    verify: { percent: 5, every: 1d }
    prune: { every: 1w, grace: 3d, max_unused: 10%, max_repack_bytes: 50GiB }
    rpo: 26h
    limit_upload: 20MiB
    limit_download: 104857600
    max_requests: 20000
    hooks: { before: "true", after: 'echo "\${HOME}"', on_failure: "false", timeout: 5min }
`;

function read(text: string, environment: Record<string, string> = {}): JobFile {
  const { file, problems } = parseJobFile(text, environment);
  expect(problems).toEqual([]);
  return file!;
}

function problemsOf(text: string, environment: Record<string, string> = {}): readonly JobFileProblem[] {
  const { file, problems } = parseJobFile(text, environment);
  expect(file).toBeUndefined();
  return problems;
}

/** "line:column path: message" of each. */
const lines = (problems: readonly JobFileProblem[]): string[] =>
  problems.map(({ line, column, path, message }) => `${line}:${column} ${path}: ${message}`);

test("a file is read: sizes in bytes, times in milliseconds", () => {
  const file = read(GOOD);
  expect(file.sources["web"]).toMatchObject({
    freeze_budget: 3000,
    scratch_size: 20 * 2 ** 30,
    disks: ["vda"],
  });
  expect(file.jobs["nightly"]).toMatchObject({
    sources: ["web", "db"],
    verify: { percent: 5, every: 86_400_000 },
    prune: { every: 604_800_000, grace: 3 * 86_400_000, max_unused: { percent: 10 } },
    rpo: 26 * 3_600_000,
    limit_upload: 20 * 2 ** 20,
    limit_download: 100 * 2 ** 20,
    max_requests: 20_000,
    hooks: { timeout: 300_000, after: 'echo "${HOME}"' },
  });
});

test("all problems are told at once, each where it stands, in the order of the file", () => {
  const text = `repositories:
  main:
    url: ftp://x
    password: secret
sources:
  web:
    uri: vmware:web
  db: { uri: nbd://h/db, freeze: auto }
  none: { connections: 99 }
  bad name: { uri: nbd://h/x }
jobs:
  nightly:
    repository: man
    sources: [web, dbx, web]
    retention: { keep_dayly: 3, keep_last: 1 }
    rpo: 10m
    limit_upload: 1KiB
  late:
    sources: [db]
    retention: { timezone: UTC }
`;
  expect(lines(problemsOf(text))).toEqual([
    expect.stringMatching(/^3:10 repositories\.main\.url: .*no ftp: store/),
    expect.stringMatching(/^4:5 repositories\.main: a password itself has no place/),
    expect.stringMatching(/^7:10 sources\.web\.uri: Not an NBD URI: "vmware:web"/),
    expect.stringMatching(/^8:34 sources\.db\.freeze: only of a QEMU that runs/),
    expect.stringMatching(/^9:3 sources\.none: give either uri, or uris/),
    expect.stringMatching(/^9:24 sources\.none\.connections: /),
    "10:3 sources.bad name: not a name of A-Z a-z 0-9 . _ -",
    "13:17 jobs.nightly.repository: there is no repository man; there are main",
    "14:20 jobs.nightly.sources.1: there is no source dbx; there are web, db, none, bad name",
    "14:25 jobs.nightly.sources.2: source web is named twice",
    expect.stringMatching(
      /^15:18 jobs\.nightly\.retention: there is no field keep_dayly; there are keep_last, keep_h/,
    ),
    expect.stringMatching(/^16:10 jobs\.nightly\.rpo: Not a length of time: "10m"; write 90s, 10min/),
    expect.stringMatching(/^17:19 jobs\.nightly\.limit_upload: Too slow/),
    "18:3 jobs.late.repository: is missing",
    expect.stringMatching(/^20:5 jobs\.late\.retention: no rule keeps anything/),
  ]);
});

describe("what is no YAML, or no document of ours", () => {
  test.each([
    ["nothing", "", /^1:1 : /],
    ["a list", "- a\n- b\n", /^1:1 : /],
    ["a broken list", "repositories:\n  main: [\nsources: {}\n", /^\d+:\d+ : .*sequence/],
    ["a name twice", `${GOOD}  nightly: {}\n`, /^\d+:3 : Map keys must be unique/],
    ["two documents", `${GOOD}---\n{}\n`, /^\d+:1 : .*multiple documents/],
    ["an unknown tag", GOOD.replace("20000", "!secret x"), /Unresolved tag: !secret/],
    ["depth without end", "[".repeat(100_000), /^1:/],
    ["anchors that grow", anchors(), /alias/],
    [
      "__proto__",
      GOOD.replace("  db:", "  __proto__:").replace("[web, db]", "[web]"),
      /sources\.__proto__: not a name/,
    ],
  ])("%s", (_, text, problem) => {
    expect(lines(problemsOf(text))[0]).toMatch(problem);
  });

  function anchors(): string {
    const levels = Array.from({ length: 9 }, (_, level) => {
      const inner = level === 0 ? "x" : `*a${level - 1}`;
      return `a${level}: &a${level} [${Array(9).fill(inner).join(", ")}]`;
    });
    return levels.join("\n");
  }
});

describe("the environment", () => {
  test("fills texts, never adds fields, and leaves command lines to sh", () => {
    const text = GOOD.replace("s3://bucket/vms", "${REPO}").replace(
      "os: debian",
      () => 'os: "${OS:-none} $${x}"',
    );
    const file = read(text, { REPO: "s3://other/x", OS: "" });
    expect(file.repositories["main"]!.url).toBe("s3://other/x");
    expect(file.sources["web"]!.tags).toEqual({ os: "none ${x}" });
    expect(file.jobs["nightly"]!.hooks!.after).toContain("${HOME}");
    const injected = read(text, { REPO: "/x\n    password_env: A" });
    expect(injected.repositories["main"]).toEqual({
      url: "/x\n    password_env: A",
      password_file: "/etc/blockhaul/password",
    });
  });

  test("that lacks a variable is a problem at its place", () => {
    const problems = problemsOf(GOOD.replace("s3://bucket/vms", "${REPO}"));
    expect(lines(problems)).toEqual([
      "4:10 repositories.main.url: the environment has no REPO; set it, or write ${REPO:-default}",
    ]);
  });
});

test("two jobs may not keep different generations of one source", () => {
  const text = `${GOOD}  weekly: { repository: main, sources: [web], retention: { keep_last: 1 } }\n`;
  expect(lines(problemsOf(text))).toEqual([
    expect.stringMatching(/^\d+:41 jobs\.weekly\.sources\.0: job nightly has retention rules for web/),
  ]);
  read(`${GOOD}  weekly: { repository: main, sources: [web] }\n`);
});

test("a source's queue is one of the file's, which are URLs", () => {
  expect(lines(problemsOf(GOOD.replace("queue: host-7", "queue: host-8")))).toEqual([
    "15:12 sources.web.queue: there is no queue host-8; there are host-7",
  ]);
  expect(lines(problemsOf(GOOD.replace(/^queues: .*/m, "queues: { host-7: 'sqs:host-7' }")))).toEqual([
    expect.stringMatching(/^\d+:19 queues\.host-7: "sqs:host-7" is not the URL of a queue/),
  ]);
});

test("a password comes from one place", () => {
  const text = GOOD.replace("password_file:", "password_env: A\n    password_file:");
  expect(lines(problemsOf(text))).toEqual(["3:3 repositories.main: the password comes from one place only"]);
});

test("the published schema is the one that is used: blockhaul run --schema prints it anew", () => {
  const path = resolve(import.meta.dirname, "../../../deploy/blockhaul.schema.json");
  expect(JSON.parse(readFileSync(path, "utf8"))).toEqual(jobFileJsonSchema());
});

test.each(["README.md", "deploy/kubernetes/configmap.yaml"])(
  "what %s shows is a file that can be run",
  (path) => {
    const text = readFileSync(resolve(import.meta.dirname, "../../..", path), "utf8");
    const shown = path.endsWith(".md")
      ? /```yaml\n([^`]*)```/.exec(text)![1]!
      : /^ {2}blockhaul\.yaml: \|\n((?: {4}.*\n|\n)+)/m.exec(text)![1]!;
    expect(Object.keys(read(shown).jobs)).toEqual(["nightly"]);
  },
);
