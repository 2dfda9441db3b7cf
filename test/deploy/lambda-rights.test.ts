import { spawn } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { resolve } from "node:path";
import { beforeAll, expect, onTestFinished, test, vi } from "vitest";
import type { WatchResult } from "../../src/lambda/watch.ts";
import { AwsStandIn } from "../support/aws-stand-in.ts";
import { buildFunctions } from "../support/bundles.ts";
import { runCli } from "../support/cli.ts";
import { LambdaService } from "../support/lambda-service.ts";
import { minioClient, startMinio } from "../support/minio.ts";
import { orderFor, OrderPlace } from "../support/order-place.ts";
import { recordCalls } from "../support/recorded-calls.ts";
import { iamPolicy, limitedTo, type IamPolicy } from "../support/s3-access.ts";
import type { S3Server } from "../support/s3-process.ts";
import {
  statementsIn,
  target,
  transformTemplate,
  whenSo,
  type Transformed,
} from "../support/sam-template.ts";

const BIN = resolve(import.meta.dirname, "../../bin/blockhaul.js");
const BUCKET = "backups";
const SOON = { timeout: 30_000, interval: 50 };

let resources: Transformed["resources"];

beforeAll(buildFunctions);
beforeAll(() => {
  ({ resources } = transformTemplate());
});

/** The statements on buckets of a role or policy, with its parameters filled in. */
function onBuckets(name: string): IamPolicy {
  const values = {
    Bucket: BUCKET,
    Prefix: "vms",
    NotesPrefix: "notes",
    ConfigBucket: BUCKET,
    ConfigKey: "jobs.yaml",
  };
  const statements = statementsIn(resources[name]!).filter(({ Action }) =>
    [Action].flat()[0]!.startsWith("s3:"),
  );
  let text = JSON.stringify(statements)
    .replace(/\{"Fn::Sub":("[^"]*")\}/g, "$1")
    .replaceAll("${AWS::Partition}", "aws");
  for (const [parameter, value] of Object.entries(values)) text = text.replaceAll(`\${${parameter}}`, value);
  return { Version: "2012-10-17", Statement: JSON.parse(text) as object[] };
}

/** Those on queues and topics: "sqs:SendMessage AgentQueue". */
function onQueues(name: string): string[] {
  return statementsIn(resources[name]!).flatMap(({ Action, Resource }) =>
    [Action]
      .flat()
      .filter((action) => /^s[qn]s:/.test(action))
      .flatMap((action) =>
        [Resource]
          .flat()
          .map(whenSo)
          .map((one) => `${action} ${"Fn::Sub" in (one as object) ? "of hosts" : target(one)}`),
      ),
  );
}

interface Account {
  readonly aws: AwsStandIn;
  readonly minio: S3Server;
  readonly place: OrderPlace;
  /** By the names of the template: URLs. */
  readonly queues: Readonly<Record<string, string>>;
  /** Starts a function with the rights of its role. @returns also what it has asked of queues and topics. */
  deploy(name: string, environment: Readonly<Record<string, string>>, role?: string): Promise<Deployed>;
}

interface Deployed {
  readonly service: LambdaService;
  readonly calls: ReadonlySet<string>;
}

const QUEUES = ["AgentQueue", "PullQueue", "MaintainQueue"];
const LETTERS = ["AgentDeadLetters", "PullDeadLetters", "MaintainDeadLetters", "ScheduleDeadLetters"];

async function account(): Promise<Account> {
  const aws = await AwsStandIn.start();
  const minio = await startMinio();
  onTestFinished(() => minio.stop());
  await minio.createBucket(BUCKET);
  const place = await OrderPlace.make();
  const queues: Record<string, string> = {};
  for (const name of [...QUEUES, ...LETTERS]) queues[name] = await aws.queue(`${name}.fifo`);
  const { arn } = await aws.topic("Topic");
  const options = `?endpoint=${minio.endpoint}&region=${minio.region}`;
  const more = "    retention: { keep_last: 1 }\n    prune: {}\n    verify: { percent: 100 }\n    rpo: 26h";
  const jobs = place
    .text(more, `s3://${BUCKET}/vms${options}`)
    .replace("[web, gone]", "[web]")
    .replace(/, gone: .*/, " }");
  await minioClient(minio).putObject(BUCKET, "jobs.yaml", jobs);
  await writeFile(place.path("blockhaul.yaml"), jobs);
  expect(await runCli(["init", "-r", `s3://${BUCKET}/vms${options}`], { env: minio.env })).toMatchObject({
    code: 0,
  });
  const common = {
    BLOCKHAUL_CONFIG: `s3://${BUCKET}/jobs.yaml${options}`,
    BLOCKHAUL_NOTES: `s3://${BUCKET}/notes${options}`,
    BLOCKHAUL_MAINTAIN_QUEUE_URL: queues["MaintainQueue"]!,
    BLOCKHAUL_TOPIC_ARN: arn,
  };
  return {
    aws,
    minio,
    place,
    queues,
    deploy: async (name, environment, role = `${name}Role`) => {
      const { endpoint, calls } = await recordCalls(aws.environment["AWS_ENDPOINT_URL_SQS"]!);
      const service = await LambdaService.start({
        handler: `${name.toLowerCase()}.handler`,
        environment: {
          ...common,
          ...(await limitedTo(minio, [onBuckets(role)])),
          AWS_ENDPOINT_URL_SQS: endpoint,
          AWS_ENDPOINT_URL_SNS: endpoint,
          BLOCKHAUL_CACHE_DIR: place.path(`cache-${name}`),
          ...environment,
        },
      });
      return { service, calls };
    },
  };
}

/** What a role allows on queues is enough for what was asked. */
function expectAllowed(calls: ReadonlySet<string>, role: string): void {
  expect(calls.size).toBeGreaterThan(0);
  const asked = [...calls].map((call) => call.replace(/\.fifo$/, ""));
  expect(onQueues(role)).toEqual(expect.arrayContaining(asked));
}

/** Words of a function that something was refused to it. */
const refusals = ({ service }: Deployed): string[] =>
  service.output.split("\n").filter((line) => /"level":"(?:WARN|ERROR)"|AccessDenied/.test(line));

test(
  "functions and agents get by with the rights that the template gives them",
  { timeout: 120_000 },
  async () => {
    const { aws, minio, place, queues, deploy } = await account();
    const url = (name: string): Record<string, string> => ({ BLOCKHAUL_QUEUE_URL: queues[name]! });

    const dispatch = await deploy("Dispatch", url("AgentQueue"));
    await dispatch.service.invoke({ job: "nightly", scheduledAt: new Date().toISOString() });
    expectAllowed(dispatch.calls, "DispatchRole");

    const recorded = await recordCalls(aws.environment["AWS_ENDPOINT_URL_SQS"]!);
    const rights = [await iamPolicy("writer", BUCKET, "vms"), onBuckets("AgentPolicy")];
    const agent = spawn(process.execPath, [BIN, "agent", "--config", place.path("blockhaul.yaml")], {
      env: {
        ...process.env,
        ...(await limitedTo(minio, rights)),
        ...url("AgentQueue"),
        AWS_ENDPOINT_URL_SQS: recorded.endpoint,
        BLOCKHAUL_NOTES: `s3://${BUCKET}/notes?endpoint=${minio.endpoint}&region=${minio.region}`,
        BLOCKHAUL_CACHE_DIR: place.path("cache-agent"),
      },
      stdio: ["ignore", "ignore", "pipe"],
    });
    onTestFinished(() => void agent.kill("SIGKILL"));
    let said = "";
    agent.stderr.setEncoding("utf8").on("data", (text: string) => (said += text));
    await vi.waitFor(() => expect(said).toMatch(/web: generation \S+ is stored/), SOON);
    agent.kill("SIGTERM");
    await once(agent, "exit");
    expect(said).not.toMatch(/warning|error/);
    expectAllowed(recorded.calls, "AgentPolicy");

    const pull = await deploy("Pull", url("PullQueue"));
    const invoke = async ({ service }: Deployed, name: string, body: object): Promise<void> => {
      await aws.send(queues[name]!, JSON.stringify(body));
      const Records = await aws.receive(queues[name]!);
      const answer = await service.invoke({ Records });
      expect(answer, service.output).toEqual({ batchItemFailures: [] });
    };
    await invoke(
      pull,
      "PullQueue",
      orderFor("web", { scheduledAt: new Date(Date.now() + 1000).toISOString() }),
    );
    expect(pull.service.output).toContain('"Backed up"');

    const maintain = await deploy("Maintain", {});
    const steps = ["forget", "prune", "verify", "scrub"];
    await invoke(maintain, "MaintainQueue", { job: "nightly", scheduledAt: "2026-11-24T06:17:00Z", steps });

    const letters = LETTERS.map((name) => queues[name]!).join();
    const watch = await deploy("Watch", { BLOCKHAUL_DEAD_LETTER_URLS: letters });
    await aws.send(queues["AgentDeadLetters"]!, "{}");
    const look = (await watch.service.invoke({})) as WatchResult;
    expect(look).toEqual({ findings: ["queues/letters/AgentDeadLetters.fifo"], told: { come: 1, gone: 0 } });
    expectAllowed(watch.calls, "WatchRole");

    for (const one of [dispatch, pull, maintain]) expect(refusals(one)).toEqual([]);
  },
);

test("with those of another they do not", async () => {
  const { queues, deploy } = await account();
  const pull = await deploy("Pull", { BLOCKHAUL_QUEUE_URL: queues["PullQueue"]! }, "WatchRole");
  const body = JSON.stringify(orderFor("web"));
  const record = { messageId: "m", receiptHandle: "r", body, attributes: { ApproximateReceiveCount: "1" } };
  expect(await pull.service.invoke({ Records: [record] })).toEqual({
    batchItemFailures: [{ itemIdentifier: "m" }],
  });
  expect(refusals(pull).join()).toContain("E_ACCESS");
  expect([...pull.calls]).toEqual(["sqs:ChangeMessageVisibility PullQueue.fifo"]);
  expect(() => expectAllowed(pull.calls, "WatchRole")).toThrow();
});
