import { readFile, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { temporaryFolder } from "../support/folder.ts";
import { runLinter } from "../support/linters.ts";
import {
  statementsIn,
  target,
  TEMPLATE,
  transformTemplate,
  type Resource,
  type Statement,
  type Transformed,
  type Value,
} from "../support/sam-template.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const HOST_QUEUE = join(ROOT, "deploy/lambda/host-queue.yaml");

let resources: Transformed["resources"];
let outputs: Transformed["outputs"];

beforeAll(() => {
  ({ resources, outputs } = transformTemplate());
});

function lint(file: string): { status: number | null; said: string } {
  const main = "from cfnlint.runner import main; main()";
  return runLinter("python", "-c", main, "--regions", "eu-central-1", "--", file);
}

function ofType(type: string): [string, Resource][] {
  return Object.entries(resources).filter(([, resource]) => resource.Type === type);
}

const statementsOf = (role: string): Statement[] => statementsIn(resources[role]!);

test("cfn-lint finds nothing, and would", async () => {
  expect(lint(TEMPLATE)).toEqual({ status: 0, said: "" });
  const broken = join(await temporaryFolder(), "template.yaml");
  await writeFile(
    broken,
    (await readFile(TEMPLATE, "utf8")).replace("VisibilityTimeout", "VisibilityTimeOut"),
  );
  expect(lint(broken).said).toContain("VisibilityTimeOut");
});

test("its functions are the handlers, in the bundle that is built", () => {
  const handlers = ofType("AWS::Lambda::Function").map(([, { Properties }]) => Properties["Handler"]);
  const names = ["dispatch", "maintain", "pull", "watch"];
  expect([...new Set(handlers)].sort()).toEqual(names.map((name) => `${name}.handler`));
});

test("every function finds its settings, and keeps its logs for a while", () => {
  for (const [name, { Properties }] of ofType("AWS::Lambda::Function")) {
    const { Variables } = Properties["Environment"] as { Variables: Value };
    const named = ["CONFIG", "NOTES", "CACHE_DIR", "MAINTAIN_QUEUE_URL", "TOPIC_ARN"].map(
      (one) => `BLOCKHAUL_${one}`,
    );
    expect(Object.keys(Variables), name).toEqual(expect.arrayContaining(named));
    const own = { Dispatch: "AgentQueue", DispatchPull: "PullQueue", Pull: "PullQueue" }[name];
    expect(Variables["BLOCKHAUL_QUEUE_URL"], name).toEqual(own === undefined ? undefined : { Ref: own });
    const logs = resources[target((Properties["LoggingConfig"] as Value)["LogGroup"])]!;
    expect(logs.Properties["RetentionInDays"], name).toEqual({ Ref: "LogDays" });
  }
});

describe("queues", () => {
  test("a message that fails five times is kept for two weeks, in order where its queue is", () => {
    const queues = ofType("AWS::SQS::Queue");
    const dead = new Set<string>();
    for (const [name, { Properties, Condition }] of queues) {
      const redrive = Properties["RedrivePolicy"] as Value | undefined;
      if (redrive === undefined) continue;
      expect(redrive["maxReceiveCount"], name).toBe(5);
      const letters = target(redrive["deadLetterTargetArn"]);
      dead.add(letters);
      expect(resources[letters]!.Condition, name).toBe(Condition);
      expect(resources[letters]!.Properties["FifoQueue"], name).toBe(Properties["FifoQueue"]);
    }
    dead.add("ScheduleDeadLetters");
    expect(queues.map(([name]) => name).filter((name) => name.endsWith("DeadLetters"))).toEqual(
      expect.arrayContaining([...dead]),
    );
    for (const name of dead) expect(resources[name]!.Properties["MessageRetentionPeriod"]).toBe(14 * 86_400);
  });

  test("a function that takes messages tells which of them failed, and has six times its time", () => {
    const mappings = ofType("AWS::Lambda::EventSourceMapping");
    expect(mappings).toHaveLength(2);
    for (const [name, { Properties }] of mappings) {
      expect(Properties["FunctionResponseTypes"], name).toEqual(["ReportBatchItemFailures"]);
      const queue = resources[target(Properties["EventSourceArn"])]!.Properties;
      const { Timeout } = resources[target(Properties["FunctionName"])]!.Properties;
      expect(queue["VisibilityTimeout"], name).toBeGreaterThanOrEqual(6 * (Timeout as number));
    }
  });
});

describe("schedules", () => {
  test("each is retried, then kept, and can stand beside one of another stack", () => {
    const schedules = ofType("AWS::Scheduler::Schedule");
    const names = ["DispatchPullSchedule", "DispatchSchedule", "MaintainTimer", "WatchSchedule"];
    expect(schedules.map(([name]) => name).sort()).toEqual(names);
    for (const [name, { Properties }] of schedules) {
      const to = Properties["Target"] as Value;
      expect(target((to["DeadLetterConfig"] as Value)["Arn"]), name).toBe("ScheduleDeadLetters");
      expect((to["RetryPolicy"] as Value)["MaximumRetryAttempts"], name).toBeGreaterThan(0);
      // without a name CloudFormation makes one; SAM would give a fixed one
      if (Properties["Name"] !== undefined) {
        expect(JSON.stringify(Properties["Name"]), name).toContain("${AWS::StackName}");
      }
      expect(JSON.stringify(to["Input"]), name).toContain("<aws.scheduler.scheduled-time>");
      const roles = statementsOf(target(to["RoleArn"]));
      expect(
        roles.flatMap(({ Action }) => Action),
        name,
      ).toContain("sqs:SendMessage");
    }
  });

  test("one to a queue that keeps order can be sent: the queue itself tells duplicates", () => {
    const { Target } = resources["MaintainTimer"]!.Properties as { Target: Value };
    const queue = resources[target(Target["Arn"])]!.Properties;
    expect(queue).toMatchObject({ FifoQueue: true, ContentBasedDeduplication: true });
    expect(Target["SqsParameters"]).toEqual({ MessageGroupId: { Ref: "MaintainJob" } });
  });

  test("their defaults are expressions of the Scheduler", async () => {
    const text = await readFile(TEMPLATE, "utf8");
    const expressions = [...text.matchAll(/Default: ((?:cron|rate)\(.*\))/g)].map(([, one]) => one!);
    expect(expressions).toHaveLength(4);
    for (const one of expressions) {
      expect(one).toMatch(/^(?:cron\(\d{1,2} \d{1,2} \* \* \? \*\)|rate\(1 hour\))$/);
    }
  });
});

describe("a host's queue", () => {
  let host: Readonly<Record<string, Resource>>;

  beforeAll(() => {
    const print = "json.dump(cfn_yaml.load(sys.argv[1]), sys.stdout)";
    const load = `import json, sys; from cfnlint.decode import cfn_yaml; ${print}`;
    const { status, said } = runLinter("python", "-c", load, HOST_QUEUE);
    expect(status, said).toBe(0);
    host = (JSON.parse(said) as { Resources: typeof host }).Resources;
  });

  test("cfn-lint finds nothing in it", () => {
    expect(lint(HOST_QUEUE)).toEqual({ status: 0, said: "" });
  });

  test("is as the queue of all, and dispatch may send to it", () => {
    const { QueueName, RedrivePolicy, ...own } = host["Queue"]!.Properties;
    const { RedrivePolicy: usual, ...common } = resources["AgentQueue"]!.Properties;
    expect(own).toEqual(common);
    expect(RedrivePolicy).toMatchObject({ maxReceiveCount: (usual as Value)["maxReceiveCount"] });
    const [, name] = /"\$\{Stack\}(-host-)\$\{Host\}\.fifo"/.exec(JSON.stringify(QueueName))!;
    const sends = statementsOf("DispatchRole").filter(({ Action }) =>
      [Action].flat().includes("sqs:SendMessage"),
    );
    expect(JSON.stringify(sends)).toContain(`:\${AWS::StackName}${name!}*"`);
  });

  test("what it takes from the other stack is there", () => {
    const exported = Object.values(outputs).flatMap(({ Export }) =>
      Export === undefined ? [] : [Export.Name],
    );
    const names = exported.map((name) =>
      (name as { "Fn::Sub": string })["Fn::Sub"].replace("AWS::StackName", "Stack"),
    );
    const taken = [...JSON.stringify(host).matchAll(/"Fn::ImportValue":\{"Fn::Sub":"([^"]+)"\}/g)].map(
      ([, name]) => name,
    );
    expect([...new Set(taken)].sort()).toEqual(names.sort());
    expect(outputs["AgentDeadLettersArn"]!.Value).toEqual({ "Fn::GetAtt": ["AgentDeadLetters", "Arn"] });
  });

  test("its agent may do with it what agents do with the other one, and with no other queue", () => {
    const [queue, notes, ...more] = statementsIn(host["AgentPolicy"]!);
    const [usualQueue, usualNotes] = statementsOf("AgentPolicy");
    expect(more).toEqual([]);
    expect(queue).toEqual({ ...usualQueue, Resource: { "Fn::GetAtt": ["Queue", "Arn"] } });
    expect(notes!.Action).toEqual(usualNotes!.Action);
    expect(outputs["AgentNotesArn"]!.Value).toEqual(usualNotes!.Resource);
  });
});

test("what must not run twice at once does not", () => {
  const reserved = ofType("AWS::Lambda::Function")
    .filter(([, { Properties }]) => Properties["ReservedConcurrentExecutions"] === 1)
    .map(([name]) => name);
  expect(reserved.sort()).toEqual(["Maintain", "Watch"]);
});

describe("alarms", () => {
  const alarmed = (metric: string): string[] =>
    ofType("AWS::CloudWatch::Alarm")
      .filter(([, { Properties }]) => Properties["MetricName"] === metric)
      .map(([name, { Properties, Condition }]) => {
        expect(Properties["AlarmActions"], name).toEqual([{ Ref: "Topic" }]);
        const of = target((Properties["Dimensions"] as Value[])[0]!["Value"]);
        expect(resources[of]!.Condition, name).toBe(Condition);
        return of;
      })
      .sort();

  test("each queue of failures, each function's errors, the agents, the watch itself", () => {
    const letters = ofType("AWS::SQS::Queue").map(([name]) => name);
    expect(alarmed("ApproximateNumberOfMessagesVisible")).toEqual(
      letters.filter((name) => name.endsWith("DeadLetters")).sort(),
    );
    expect(alarmed("Errors")).toEqual(
      ofType("AWS::Lambda::Function")
        .map(([name]) => name)
        .sort(),
    );
    expect(alarmed("ApproximateAgeOfOldestMessage")).toEqual(["AgentQueue"]);
    expect(alarmed("Invocations")).toEqual(["Watch"]);
    expect(resources["WatchSilentAlarm"]!.Properties["TreatMissingData"]).toBe("breaching");
  });
});

describe("rights", () => {
  test.each([
    ["Pull", ["writer", "object-lock"]],
    ["Maintain", ["maintainer", "object-lock"]],
    ["Watch", ["scrubber"]],
  ])("those of %s on the repository are those of deploy/iam", async (name, policies) => {
    const roles = statementsOf(`${name}Role`).filter(({ Sid }) => Sid !== undefined && Sid !== "SeeUploads");
    const wanted: Statement[] = [];
    for (const policy of policies) {
      const text = await readFile(join(ROOT, `deploy/iam/${policy}.json`), "utf8");
      wanted.push(...(JSON.parse(text) as { Statement: Statement[] }).Statement);
    }
    const plain = JSON.stringify(roles)
      .replace(/\{"Fn::Sub":("[^"]*")\}/g, "$1")
      .replaceAll("${AWS::Partition}", "aws")
      .replaceAll("${Bucket}", "BUCKET")
      .replaceAll("${Prefix}", "PREFIX");
    expect(JSON.parse(plain)).toEqual(wanted.filter(({ Sid }) => Sid !== "SeeUploads"));
  });

  test("each can leave its note for the watch, which alone can read them, and remembers what it told", () => {
    const onNotes = (name: string): string[] =>
      statementsOf(`${name}Role`)
        .filter(({ Resource }) => JSON.stringify(Resource).includes("${NotesPrefix}/"))
        .map(
          ({ Action, Resource }) =>
            `${[Action].flat().join()} ${/NotesPrefix\}(\S+)"/.exec(JSON.stringify(Resource))![1]!}`,
        );
    for (const name of ["Dispatch", "DispatchPull", "Pull", "Maintain"]) {
      expect(onNotes(name), name).toEqual(["s3:PutObject /notes/*"]);
    }
    expect(statementsOf("AgentPolicy")).toContainEqual({
      Effect: "Allow",
      Action: "s3:PutObject",
      Resource: { "Fn::Sub": "arn:${AWS::Partition}:s3:::${Bucket}/${NotesPrefix}/notes/*" },
    });
    expect(onNotes("Watch")).toEqual(["s3:PutObject /state.json", "s3:GetObject /*"]);
  });

  test("the watch looks at every queue of failures, and may", () => {
    const { Variables } = resources["Watch"]!.Properties["Environment"] as { Variables: Value };
    const asked = statementsOf("WatchRole").find(
      ({ Action }) => [Action].flat()[0] === "sqs:GetQueueAttributes",
    );
    for (const [name] of ofType("AWS::SQS::Queue").filter(([one]) => one.endsWith("DeadLetters"))) {
      expect(JSON.stringify(Variables["BLOCKHAUL_DEAD_LETTER_URLS"])).toContain(`"${name}"`);
      expect(JSON.stringify(asked?.Resource)).toContain(`"${name}"`);
    }
  });

  test("nothing but network interfaces is granted on everything, and nothing by a star", () => {
    for (const [name] of ofType("AWS::IAM::Role")) {
      for (const { Action, Resource, Effect } of statementsOf(name)) {
        expect(Effect).toBe("Allow");
        const actions = [Action].flat();
        expect(
          actions.filter((action) => action.includes("*")),
          name,
        ).toEqual([]);
        if (Resource === "*")
          expect(
            actions.filter((one) => !one.startsWith("ec2:")),
            name,
          ).toEqual([]);
      }
    }
  });

  test("each function has a role of its own, which no other service may take", () => {
    const roles = ofType("AWS::Lambda::Function").map(([, { Properties }]) => target(Properties["Role"]));
    expect(new Set(roles).size).toBe(roles.length);
    for (const role of roles) {
      expect(JSON.stringify(resources[role]!.Properties["AssumeRolePolicyDocument"])).toContain(
        '"Service":"lambda.amazonaws.com"',
      );
    }
  });
});

test("what belongs to pulling is there only with it", () => {
  const parts = Object.entries(resources).filter(([name]) => name.includes("Pull"));
  expect(parts.length).toBeGreaterThan(8);
  for (const [name, { Condition }] of parts) expect(Condition, name).toBe("HasPull");
});

test("its README knows its parameters", async () => {
  const readme = await readFile(join(ROOT, "deploy/lambda/README.md"), "utf8");
  const parameters = /^Parameters:\n([\s\S]*?)^\S/m.exec(await readFile(TEMPLATE, "utf8"))![1]!;
  for (const [, name] of parameters.matchAll(/^ {2}(\w+):$/gm)) expect(readme).toContain(`\`${name!}\``);
});
