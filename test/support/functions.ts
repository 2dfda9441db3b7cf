import { randomUUID } from "node:crypto";
import { expect, vi } from "vitest";
import type { LambdaContext } from "../../src/lambda/edge.ts";
import type { BatchResponse } from "../../src/lambda/sqs-event.ts";
import type { AwsStandIn, SqsRecord } from "./aws-stand-in.ts";

/** As Lambda's own. @param timeoutMs what the invocation may take. */
export function contextOf(functionName: string, timeoutMs = 60_000): LambdaContext {
  const end = Date.now() + timeoutMs;
  return { functionName, awsRequestId: randomUUID(), getRemainingTimeInMillis: () => end - Date.now() };
}

/** What handlers print, line by line, and nobody else sees. Ends with the test. */
export function captureLines(): readonly Record<string, unknown>[] {
  const lines: Record<string, unknown>[] = [];
  const write = process.stdout.write.bind(process.stdout);
  vi.spyOn(process.stdout, "write").mockImplementation((...args) => {
    const [text] = args;
    if (typeof text !== "string" || !text.startsWith("{")) return write(...(args as [string]));
    for (const line of text.trimEnd().split("\n")) lines.push(JSON.parse(line) as Record<string, unknown>);
    return true;
  });
  return lines;
}

type Handler = (event: unknown, context: LambdaContext) => Promise<BatchResponse>;

/** As an event source mapping: takes messages, has them handled, and deletes those that the handler does not name. */
export async function mapQueue(
  aws: AwsStandIn,
  url: string,
  handler: Handler,
  context: LambdaContext,
): Promise<{ readonly records: readonly SqsRecord[]; readonly failed: readonly string[] }> {
  const records = await aws.receive(url);
  if (records.length === 0) return { records, failed: [] };
  const { batchItemFailures } = await handler({ Records: records }, context);
  const failed = batchItemFailures.map(({ itemIdentifier }) => itemIdentifier);
  for (const record of records) {
    if (!failed.includes(record.messageId)) await aws.remove(url, record);
  }
  expect(records.map(({ messageId }) => messageId)).toEqual(expect.arrayContaining(failed));
  return { records, failed };
}
