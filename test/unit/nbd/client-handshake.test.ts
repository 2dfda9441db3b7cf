import { expect, test } from "vitest";
import { ExportFlag, Option, OptionReplyType } from "../../../src/nbd/constants.ts";
import { describeExport, listExports } from "../../../src/nbd/exports.ts";
import { encodeOptionReply } from "../../../src/nbd/options.ts";
import { openNbdSource } from "../../../src/nbd/source.ts";
import { parseNbdUri } from "../../../src/nbd/uri.ts";
import { disk, fake, readAt, source } from "../../support/fake-nbd-disks.ts";

const { signal } = new AbortController();
const NOTHING = Buffer.alloc(0);
const BITMAP = "qemu:dirty-bitmap:b";

test("opening ends soon after an abort", async () => {
  const server = await fake({ greeting: "silence" });
  const abort = new AbortController();
  const opening = openNbdSource(parseNbdUri(server.uri), {}, abort.signal);
  await expect.poll(() => server.connections).toBe(1);
  abort.abort(new Error("enough"));
  await expect(opening).rejects.toThrow("enough");
});

test("without GO the export is entered by its name", async () => {
  const bytes = disk();
  const server = await fake({
    disk: bytes,
    onOption: (option) =>
      option === Option.GO ? encodeOptionReply(option, OptionReplyType.ERR_UNSUP, NOTHING) : undefined,
  });
  const from = await source(server);
  expect(await readAt(from, 7, 1000)).toEqual(bytes.subarray(7, 1007));
  expect(server.options).toContain(Option.EXPORT_NAME);
});

test.each([
  [OptionReplyType.ERR_POLICY, "E_NBD_REFUSED", "ERR_POLICY (go away)"],
  [OptionReplyType.ERR_TLS_REQD, "E_NBD_TLS_REQUIRED", "write nbds in place of nbd"],
  [OptionReplyType.ERR_UNKNOWN, "E_NBD_EXPORT", 'has no export "" but ""'],
  [OptionReplyType.ERR_SHUTDOWN, "E_NBD_CONNECT", "is shutting down"],
])("refusal 0x%x of the export is %s", async (type, code, reason) => {
  const server = await fake({
    onOption: (option) =>
      option === Option.GO ? encodeOptionReply(option, type, Buffer.from("go away")) : undefined,
  });
  const opening = openNbdSource(parseNbdUri(server.uri), {}, signal);
  await expect(opening).rejects.toMatchObject({ code });
  await expect(opening).rejects.toThrow(reason);
});

test("a server that refuses to list says so", async () => {
  const server = await fake({
    onOption: (option) =>
      option === Option.LIST ? encodeOptionReply(option, OptionReplyType.ERR_POLICY, NOTHING) : undefined,
  });
  await expect(listExports(parseNbdUri(server.uri), signal)).rejects.toMatchObject({ code: "E_NBD_REFUSED" });
});

test("nothing goes out unencrypted to a server that does not offer TLS", async () => {
  const server = await fake({ disk: disk() });
  const uri = server.uri.replace("nbd+unix", "nbds+unix") + "&tls-hostname=h";
  const opening = openNbdSource(parseNbdUri(uri), {}, signal);
  await expect(opening).rejects.toMatchObject({ kind: "credentials", code: "E_NBD_NO_TLS_OFFER" });
  expect(server.options.filter((option) => option !== Option.ABORT)).toEqual([Option.STARTTLS]);
});

test("bytes slipped in behind the consent to TLS are not taken for the server's", async () => {
  const server = await fake({
    onOption: (option) => {
      const consent = encodeOptionReply(option, OptionReplyType.ACK, NOTHING);
      return Buffer.concat([
        consent,
        encodeOptionReply(Option.EXTENDED_HEADERS, OptionReplyType.ACK, NOTHING),
      ]);
    },
  });
  const uri = server.uri.replace("nbd+unix", "nbds+unix") + "&tls-hostname=h";
  await expect(openNbdSource(parseNbdUri(uri), {}, signal)).rejects.toThrow(
    "unencrypted bytes after STARTTLS",
  );
});

test("an export is described", async () => {
  const server = await fake({
    disk: disk(),
    flags: ExportFlag.HAS_FLAGS | ExportFlag.READ_ONLY,
    extended: true,
    contexts: { [BITMAP]: () => [] },
  });
  expect(await describeExport(parseNbdUri(server.uri), signal)).toEqual({
    size: 262_144,
    description: "",
    readOnly: true,
    blockSize: { minimum: 1, preferred: 4096, maximum: 33_554_432 },
    contexts: [BITMAP],
    structuredReplies: true,
    extendedHeaders: true,
    multiConn: false,
    tls: false,
  });
  expect(server.farewells).toBe(1);
});
