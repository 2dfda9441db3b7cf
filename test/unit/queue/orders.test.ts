import { describe, expect, test } from "vitest";
import { outgoing, parseBackupOrder, parseUpkeepOrder, type BackupOrder } from "../../../src/queue/orders.ts";
import { queueError } from "../../../src/queue/errors.ts";

const order: BackupOrder = {
  order: "backup",
  job: "nightly",
  source: "web",
  scheduledAt: "2026-11-24T01:17:00Z",
};

describe("orders", () => {
  test("come back as they were sent, and twice the same is one message of the source's group", () => {
    const { body, group, once } = outgoing(order);
    expect(parseBackupOrder(body)).toEqual(order);
    expect(group).toBe("web");
    expect(once).toMatch(/^[0-9a-f]{64}$/);
    expect(outgoing(order).once).toBe(once);
    expect(outgoing({ ...order, scheduledAt: "2026-11-25T01:17:00Z" }).once).not.toBe(once);
    const continued = { slices: 1, idle: 0, reached: 5 };
    expect(outgoing({ ...order, continued }).once).not.toBe(once);
  });

  test.each([
    ["no JSON", "{", "it is no JSON"],
    ["another kind", '{"order":"restore"}', 'order: Invalid input: expected "backup"'],
    ["a field too many", JSON.stringify({ ...order, evil: 1 }), 'Unrecognized key: "evil"'],
    ["a name with a slash", JSON.stringify({ ...order, source: "../x" }), "source: not a name"],
    ["no time zone", JSON.stringify({ ...order, scheduledAt: "2026-11-24T01:17:00" }), "scheduledAt: "],
    [
      "a count below zero",
      JSON.stringify({ ...order, continued: { slices: -1, idle: 0, reached: 0 } }),
      "continued.slices: ",
    ],
    ["far too long", JSON.stringify({ ...order, evil: "x".repeat(20_000) }), "it is too long"],
    ["nothing", "null", "Invalid input"],
  ])("%s is refused", (_, body, why) => {
    expect(() => parseBackupOrder(body)).toThrow(expect.objectContaining({ code: "E_ORDER", kind: "usage" }));
    expect(() => parseBackupOrder(body)).toThrow(why);
  });

  test("upkeep is also asked for by what a schedule sends", () => {
    expect(parseUpkeepOrder('{"job":"nightly","scheduledAt":"2026-11-24T06:17:00Z"}')).toEqual({
      order: "upkeep",
      job: "nightly",
      scheduledAt: "2026-11-24T06:17:00Z",
    });
    expect(() => parseUpkeepOrder(JSON.stringify(order))).toThrow(
      expect.objectContaining({ code: "E_ORDER" }),
    );
  });
});

describe("what services answer", () => {
  const named = (name: string, status?: number, message = "no"): Error =>
    Object.assign(new Error(message), { name, ...(status && { $metadata: { httpStatusCode: status } }) });

  test.each([
    [named("QueueDoesNotExist", 400), "notFound", "E_NO_QUEUE"],
    [named("AccessDenied", 403), "credentials", "E_QUEUE_ACCESS"],
    [named("Whatever", 403), "credentials", "E_QUEUE_ACCESS"],
    [named("CredentialsProviderError"), "credentials", "E_CREDENTIALS"],
    [named("ReceiptHandleIsInvalid", 404), "locked", "E_MESSAGE_LOST"],
    [
      named("InvalidParameterValue", 400, "Value for parameter ReceiptHandle is invalid: expired"),
      "locked",
      "E_MESSAGE_LOST",
    ],
    [named("InvalidParameterValue", 400), "usage", "E_QUEUE_REFUSED"],
    [named("Whatever", 503), "unavailable", "E_QUEUE"],
    [named("RequestThrottled", 403), "unavailable", "E_QUEUE"],
    [Object.assign(named("Error"), { code: "ECONNREFUSED" }), "unavailable", "E_QUEUE"],
    [named("Error", undefined, "Region is missing"), "usage", "E_REGION"],
  ])("%s is %s %s", (error, kind, code) => {
    expect(queueError(error, "https://queue", "ReceiveMessage")).toMatchObject({ kind, code });
  });
});
