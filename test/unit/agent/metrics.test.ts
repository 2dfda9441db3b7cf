import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { AgentMetrics } from "../../../src/agent/metrics.ts";
import { MetricsServer, parseMetricsAddress } from "../../../src/agent/metrics-server.ts";
import type { Fulfilment } from "../../../src/agent/fulfil.ts";
import { emptyStats } from "../../../src/backup/counts.ts";
import { AppError } from "../../../src/errors.ts";
import { DEFAULT_PRICES } from "../../../src/store/prices.ts";
import { temporaryFolder } from "../../support/folder.ts";
import { orderFor } from "../../support/order-place.ts";

/** A run that stored 1,000 of 4,000 bytes. */
function done(): Fulfilment {
  const stats = {
    ...emptyStats(),
    bytesRead: 4000,
    bytesUnchanged: 3000,
    bytesStored: 1000,
    bytesPacked: 400,
  };
  const requests = { PutObject: 1000, GetObject: 1000, DeleteObjects: 5 };
  const report = {
    manifest: {},
    stats: { ...stats, seconds: 2, metadataBytes: 0, requests, peakRssBytes: 0 },
    guest: undefined,
  };
  const outcome = {
    job: "nightly",
    source: "web",
    seconds: 2.5,
    failure: undefined,
    report,
    retention: undefined,
  };
  return { kind: "done", outcome } as unknown as Fulfilment;
}

const failed: Fulfilment = { kind: "failed", error: new AppError("source", "E_TEST", "no") };

test("tell of each source what its latest runs did, after a restart too", async () => {
  const path = join(await temporaryFolder(), "below", "agent.json");
  const metrics = await AgentMetrics.load(path, DEFAULT_PRICES);
  metrics.listening(true);
  metrics.began();
  await metrics.ended(orderFor("web"), done(), 1_000_000);
  metrics.began();
  await metrics.ended(orderFor("web"), failed, 2_000_000);
  metrics.began();
  await metrics.ended(orderFor("web"), { kind: "already", generation: "x" }, 3_000_000);
  const text = metrics.text();
  for (const line of [
    'blockhaul_backup_last_success_timestamp_seconds{job="nightly",source="web"} 1000',
    'blockhaul_backup_last_attempt_timestamp_seconds{job="nightly",source="web"} 2000',
    'blockhaul_backup_last_result{job="nightly",source="web"} 0',
    'blockhaul_backup_runs_total{job="nightly",source="web",result="done"} 1',
    'blockhaul_backup_runs_total{job="nightly",source="web",result="failed"} 1',
    'blockhaul_backup_duration_seconds{job="nightly",source="web"} 2.5',
    'blockhaul_backup_read_bytes{job="nightly",source="web"} 4000',
    'blockhaul_backup_packed_bytes{job="nightly",source="web"} 400',
    'blockhaul_backup_requests{job="nightly",source="web",operation="PutObject"} 1000',
    'blockhaul_backup_request_cost{job="nightly",source="web"} 0.00583',
    "blockhaul_agent_running 0",
    "blockhaul_agent_listening 1",
  ]) {
    expect(text.split("\n")).toContain(line);
  }
  const lines = (metricsText: string): string[] =>
    metricsText.split("\n").filter((line) => /backup_/.test(line));
  expect(lines((await AgentMetrics.load(path, DEFAULT_PRICES)).text())).toEqual(lines(text));
});

test("begin anew where what was kept is damaged", async () => {
  const path = join(await temporaryFolder(), "agent.json");
  for (const text of ["{", '[{"job":1}]', ""]) {
    await writeFile(path, text);
    expect((await AgentMetrics.load(path, undefined)).text()).not.toContain("backup_");
  }
});

test("are served to this machine alone", async () => {
  const server = await MetricsServer.listen(parseMetricsAddress("127.0.0.1:0"), () => "a 1\n");
  const at = `http://127.0.0.1:${server.port}`;
  const answer = await fetch(`${at}/metrics`);
  expect([answer.status, await answer.text()]).toEqual([200, "a 1\n"]);
  expect((await fetch(`${at}/`)).status).toBe(404);
  expect((await fetch(`${at}/metrics`, { method: "POST" })).status).toBe(404);
  await expect(
    MetricsServer.listen({ host: "127.0.0.1", port: server.port }, () => ""),
  ).rejects.toMatchObject({
    code: "E_LISTEN",
  });
  server.close();
  for (const wrong of [
    "0.0.0.0:9477",
    "10.0.0.1:9477",
    ":9477",
    "9477",
    "127.0.0.1:70000",
    "[::]:9477",
    "example.org:1",
  ]) {
    expect(() => parseMetricsAddress(wrong)).toThrow(expect.objectContaining({ code: "E_METRICS_ADDRESS" }));
  }
  expect(parseMetricsAddress("[::1]:9477")).toEqual({ host: "::1", port: 9477 });
});
