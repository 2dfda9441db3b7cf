import { AppError } from "../errors.ts";

const Key = {
  INTERRUPT: 0x03,
  END: 0x04,
  BACKSPACE: 0x08,
  NEWLINE: 0x0a,
  RETURN: 0x0d,
  KILL: 0x15,
  DELETE: 0x7f,
};

/** True when somebody can be asked. */
export function hasTerminal(): boolean {
  return process.stdin.isTTY && process.stderr.isTTY;
}

/**
 * Asks for a line on the terminal without showing it. Backspace and Ctrl-U work; Ctrl-C stops the run.
 *
 * @param limit bytes; what is typed beyond is kept up to one byte more, so that the caller sees that it is too long.
 * @returns without its line end; the caller's to overwrite.
 * @throws AppError E_INTERRUPTED (cancelled).
 */
export async function askOnTerminal(question: string, limit: number, signal: AbortSignal): Promise<Buffer> {
  signal.throwIfAborted();
  const { stdin, stderr } = process;
  const line = new HiddenLine(limit + 1);
  stdin.setRawMode(true);
  stderr.write(question);
  try {
    return await new Promise<Buffer>((resolve, reject) => {
      const abort = (): void => finish(() => reject(signal.reason));
      const ended = (): void => finish(() => reject(interrupted()));
      const typed = (bytes: Buffer): void => {
        const state = line.add(bytes);
        bytes.fill(0);
        if (state === "done") finish(() => resolve(line.take()));
        if (state === "interrupted") finish(() => reject(interrupted()));
      };
      const finish = (settle: () => void): void => {
        signal.removeEventListener("abort", abort);
        stdin.off("data", typed).off("end", ended);
        settle();
      };
      signal.addEventListener("abort", abort);
      stdin.on("data", typed).on("end", ended).resume(); // it was paused if this is the second question
    });
  } finally {
    line.clear();
    stdin.setRawMode(false);
    stdin.pause(); // or the process would stay for more
    stderr.write("\n");
  }
}

/** What was typed so far. */
class HiddenLine {
  readonly #bytes: Buffer;
  #length = 0;

  constructor(size: number) {
    this.#bytes = Buffer.alloc(size);
  }

  add(typed: Uint8Array): "more" | "done" | "interrupted" {
    for (const byte of typed) {
      if (byte === Key.INTERRUPT) return "interrupted";
      if (byte === Key.RETURN || byte === Key.NEWLINE || byte === Key.END) return "done";
      if (byte === Key.BACKSPACE || byte === Key.DELETE) this.#removeLast();
      else if (byte === Key.KILL) this.#length = 0;
      else if (this.#length < this.#bytes.length) this.#bytes[this.#length++] = byte;
    }
    return "more";
  }

  /** A character of UTF-8: its last bytes, then its first. */
  #removeLast(): void {
    while (this.#length > 0) {
      const byte = this.#bytes[--this.#length]!;
      if ((byte & 0xc0) !== 0x80) return;
    }
  }

  /** A copy. */
  take(): Buffer {
    return Buffer.from(this.#bytes.subarray(0, this.#length));
  }

  clear(): void {
    this.#bytes.fill(0);
    this.#length = 0;
  }
}

function interrupted(): AppError {
  return new AppError("cancelled", "E_INTERRUPTED", "Interrupted");
}
