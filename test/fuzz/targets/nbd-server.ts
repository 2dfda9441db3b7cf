import type { Socket } from "node:net";
import { Duplex } from "node:stream";
import { KiB, MiB } from "../../../src/bytes/size.ts";
import { ClientFlag, Command, CommandFlag, InfoType, Option } from "../../../src/nbd/constants.ts";
import { encodeExtendedRequest, encodeRequest, type Request } from "../../../src/nbd/messages.ts";
import {
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
} from "../../../src/nbd/options.ts";
import { Session } from "../../../src/nbd/server/session.ts";
import { MemoryDisk } from "../../support/memory-disk.ts";
import { mutate, type Random } from "../mutate.ts";
import { Broken, type FuzzTarget } from "../target.ts";

const DISK = 64 * KiB;
/** Longer inputs are cut: each request may be answered by the whole disk. */
const INPUT_MAX = 16 * KiB;
/** A session whose client has said all and left is over by then, milliseconds. */
const OVER_MS = 60_000;
const nothing = Buffer.alloc(0);

/** What a client may send a server: options, then requests. */
export function nbdServerTargets(): FuzzTarget[] {
  return [
    {
      name: "NBD session, server",
      seeds: sessionSeeds(),
      mutate: (random, input, others) => mutate(random, input, others).subarray(0, INPUT_MAX),
      // 600 requests of 28 bytes, each for the whole disk, none of which are kept: what counts is `bytesMax` below
      allocatesMax: 128 * MiB,
      decode: serve,
    },
  ];
}

async function serve(input: Buffer, random: Random): Promise<void> {
  const disk = new MemoryDisk(Buffer.alloc(DISK, 1), {
    zeros: [{ offset: 4096, length: 8192 }],
    dirty: [{ offset: 0, length: 512 }],
    description: "a disk",
    blockSize: { minimum: 1, preferred: 4096, maximum: DISK },
  });
  let failure: { reason: unknown } | undefined;
  const socket = new ClientSocket();
  const session = new Session(socket as unknown as Socket, {
    exports: new Map([["web", disk]]),
    tls: undefined,
    limits: { requestsMax: 16, bytesMax: MiB },
    handshakeMs: 1000,
    lingerMs: 500,
    onError: (reason) => {
      failure ??= { reason };
    },
  });
  for (let at = 0; at < input.length;) {
    const size = Math.min(input.length - at, 1 + random(random(3) === 0 ? 16 : 4096));
    socket.push(input.subarray(at, at + size));
    at += size;
  }
  socket.push(null);
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<"late">((resolve) => (timer = setTimeout(() => resolve("late"), OVER_MS)));
  const outcome = await Promise.race([session.ended, late]);
  clearTimeout(timer);
  if (outcome === "late") throw new Broken(`the session goes on ${OVER_MS} ms after its client left`);
  if (disk.bytes.length !== DISK || disk.reading !== 0) throw new Broken("a request is still under way");
  if (failure !== undefined) throw failure.reason;
}

/** A client's socket as the server sees it; answers are thrown away. */
class ClientSocket extends Duplex {
  constructor() {
    super({ allowHalfOpen: true });
  }

  override _read(): void {
    // everything is pushed
  }

  override _write(_bytes: Buffer, _encoding: string, done: () => void): void {
    done();
  }

  /** As a `net.Socket` has it. */
  destroySoon(): void {
    if (this.writableFinished) this.destroy();
    else {
      this.once("finish", () => this.destroy());
      this.end();
    }
  }
}

function sessionSeeds(): Buffer[] {
  const flags = encodeClientFlags(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES);
  const infos = [InfoType.BLOCK_SIZE, InfoType.DESCRIPTION, InfoType.NAME];
  const go = encodeOption(Option.GO, encodeInfoRequest({ exportName: "web", infos }));
  const contexts = encodeMetaContextRequest({ exportName: "web", queries: ["base:allocation", "qemu:"] });
  const set = encodeOption(Option.SET_META_CONTEXT, contexts);
  let cookie = 0n;
  const request = (extended: boolean, type: number, offset: number, length: number, more = 0): Buffer => {
    const fields: Request = { flags: more, type, cookie: cookie++, offset, length };
    return extended ? encodeExtendedRequest(fields) : encodeRequest(fields);
  };
  const requests = (extended: boolean): Buffer[] => [
    request(extended, Command.READ, 0, DISK),
    request(extended, Command.BLOCK_STATUS, 0, DISK),
    request(extended, Command.BLOCK_STATUS, 512, 1024, CommandFlag.REQ_ONE),
    request(extended, Command.WRITE, 512, 100, extended ? CommandFlag.PAYLOAD_LEN : 0),
    Buffer.alloc(100, 3),
    request(extended, Command.WRITE_ZEROES, 4096, 4096, CommandFlag.NO_HOLE),
    request(extended, Command.TRIM, 0, 512, CommandFlag.FUA),
    request(extended, Command.FLUSH, 0, 0),
    request(extended, Command.READ, 100, 1, CommandFlag.DF),
    request(extended, Command.DISC, 0, 0),
  ];
  return [
    Buffer.concat([flags, encodeOption(Option.EXTENDED_HEADERS, nothing), set, go, ...requests(true)]),
    Buffer.concat([flags, encodeOption(Option.STRUCTURED_REPLY, nothing), set, go, ...requests(false)]),
    Buffer.concat([
      flags,
      encodeOption(Option.LIST, nothing),
      encodeOption(Option.STARTTLS, nothing),
      encodeOption(Option.STRUCTURED_REPLY, nothing),
      encodeOption(Option.LIST_META_CONTEXT, contexts),
      encodeOption(Option.INFO, encodeInfoRequest({ exportName: "other", infos })),
      encodeOption(99, Buffer.from("what")),
      encodeOption(Option.ABORT, nothing),
    ]),
    Buffer.concat([
      encodeClientFlags(1),
      encodeOption(Option.EXPORT_NAME, Buffer.from("web")),
      ...requests(false),
    ]),
  ];
}
