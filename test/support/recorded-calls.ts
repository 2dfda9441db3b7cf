import { once } from "node:events";
import { createServer, request, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { onTestFinished } from "vitest";

/** Stands before SQS and SNS until the test ends, and knows what was asked of them, as IAM calls it. */
export interface RecordedCalls {
  readonly endpoint: string;
  /** "sqs:SendMessage work.fifo" */
  readonly calls: Set<string>;
}

export async function recordCalls(upstream: string): Promise<RecordedCalls> {
  const { hostname, port } = new URL(upstream);
  const calls = new Set<string>();
  const pass = async (message: IncomingMessage, answer: ServerResponse): Promise<void> => {
    const body = await text(message);
    const { method, url, headers } = message;
    calls.add(callOf(String(headers["x-amz-target"]), body));
    const onward = request({ hostname, port, method, path: url, headers, agent: false });
    answer.on("close", () => onward.destroy());
    onward.end(body);
    const [reply] = (await once(onward, "response")) as [IncomingMessage];
    answer.writeHead(reply.statusCode!, reply.rawHeaders);
    reply.pipe(answer);
  };
  const server = createServer((message, answer) => {
    pass(message, answer).catch(() => answer.destroy()); // either side has gone
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return { endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, calls };
}

/** SQS speaks JSON and says the operation in a header; SNS speaks forms. A batch needs the right to the single one. */
function callOf(operation: string, body: string): string {
  if (operation.startsWith("AmazonSQS.")) {
    const { QueueUrl } = JSON.parse(body) as { QueueUrl: string };
    return `sqs:${operation.slice("AmazonSQS.".length).replace(/Batch$/, "")} ${QueueUrl.split("/").at(-1)!}`;
  }
  const form = new URLSearchParams(body);
  return `sns:${form.get("Action")!} ${form.get("TopicArn")!.split(":").at(-1)!}`;
}
