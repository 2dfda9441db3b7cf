import { expect, test } from "vitest";
import { outgoing, type BackupOrder } from "../../src/queue/orders.ts";
import { WorkQueue, type Message } from "../../src/queue/queue.ts";
import { publish } from "../../src/queue/topic.ts";
import { AwsStandIn } from "../support/aws-stand-in.ts";
import { failure } from "../support/outcomes.ts";

const order = (source: string, day = 24): BackupOrder => {
  return { order: "backup", job: "nightly", source, scheduledAt: `2026-11-${day}T01:17:00Z` };
};

test("a first-in-first-out queue: once each, and one of a group at a time", async () => {
  const aws = await AwsStandIn.start();
  const { signal } = new AbortController();
  const many = new WorkQueue(await aws.queue("many.fifo"), process.env);
  const messages = Array.from({ length: 12 }, (_, index) => outgoing(order(`source-${index}`)));
  await many.send(messages, signal);
  await many.send(messages, signal);
  expect(await many.waiting(signal)).toBe(12);
  many.close();

  const queue = new WorkQueue(await aws.queue("work.fifo"), process.env);
  const next = async (): Promise<Message> => (await queue.receive(30, signal))!;
  await queue.send([order("web"), order("web", 25), order("db")].map(outgoing), signal);
  const first = await next();
  expect(JSON.parse(first.body)).toEqual(order("web"));
  expect(first.receives).toBe(1);
  expect(JSON.parse((await next()).body)).toEqual(order("db"));
  await queue.hide(first, 0, signal);
  const again = await next();
  expect(again).toMatchObject({ id: first.id, receives: 2 });
  await queue.delete(again, signal);
  expect(JSON.parse((await next()).body)).toEqual(order("web", 25));
  queue.close();
});

test("a queue that is not there, a receipt of long ago, nobody who answers", async () => {
  const aws = await AwsStandIn.start();
  const url = await aws.queue("work");
  const { signal } = new AbortController();
  const gone = new WorkQueue(`${url}-gone`, process.env);
  expect(await failure(gone.receive(30, signal))).toMatchObject({ code: "E_NO_QUEUE", kind: "notFound" });
  const queue = new WorkQueue(url, process.env);
  expect(await failure(queue.hide({ receipt: "nonsense" }, 30, signal))).toMatchObject({
    code: "E_MESSAGE_LOST",
  });
  const stopped = failure(queue.receive(30, AbortSignal.abort(new Error("stop"))));
  expect(await stopped).toMatchObject({ message: "stop" });
  queue.close();
  gone.close();
});

test("what is said to a topic is heard", async () => {
  const aws = await AwsStandIn.start();
  const { arn, queue } = await aws.topic("alarms");
  const { signal } = new AbortController();
  await publish(arn, { subject: "Überfällig: web", text: "web ist überfällig" }, process.env, signal);
  const [heard] = await aws.receive(queue);
  expect(heard!.body).toBe("web ist überfällig");
  const missing = publish(`${arn}-gone`, { subject: "x", text: "x" }, process.env, signal);
  expect(await failure(missing)).toMatchObject({ code: "E_NO_QUEUE" });
});
