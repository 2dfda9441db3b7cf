import { AppError, messageOf } from "../errors.ts";

export interface OutputOptions {
  readonly json: boolean;
  readonly quiet: boolean;
}

/**
 * Where words go: results to stdout, as a table or one JSON document; everything else to stderr, as plain lines or,
 * with `--json`, as JSON lines.
 */
export class Output {
  readonly json: boolean;
  readonly quiet: boolean;
  #warnings = 0;

  constructor(options: OutputOptions) {
    this.json = options.json;
    this.quiet = options.quiet;
  }

  /** How many warnings were given; `--strict` turns any into exit code 16. */
  get warnings(): number {
    return this.#warnings;
  }

  /** True when a live progress line may be drawn. */
  get live(): boolean {
    return !this.quiet && !this.json && process.stderr.isTTY;
  }

  /** The command's result: the document with `--json`, else the text. */
  result(document: unknown, text: () => string): void {
    process.stdout.write(this.json ? `${JSON.stringify(document, undefined, 2)}\n` : ensureNewline(text()));
  }

  info(message: string): void {
    if (!this.quiet) this.#line("info", message);
  }

  warn(message: string): void {
    this.#warnings++;
    this.#line("warning", message);
  }

  /** Counts what the result itself tells as a warning. */
  countWarnings(count: number): void {
    this.#warnings += count;
  }

  error(error: unknown): void {
    if (error instanceof AppError && error.kind !== "bug") {
      this.#line("error", error.message, { kind: error.kind, code: error.code, context: error.context });
      return;
    }
    this.#line("error", `Unexpected: ${messageOf(error)}`, { kind: "bug" });
    if (error instanceof Error && error.stack !== undefined) process.stderr.write(`${error.stack}\n`);
  }

  #line(level: string, message: string, more: object = {}): void {
    const line = this.json
      ? JSON.stringify({ level, message, ...more })
      : `${level === "info" ? "" : `${level}: `}${message}`;
    process.stderr.write(`${line}\n`);
  }
}

function ensureNewline(text: string): string {
  return text === "" || text.endsWith("\n") ? text : `${text}\n`;
}

/** Columns padded to their widest cell; the last one is left ragged. */
export function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [header, ...rows];
  const widths = header.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0)));
  const line = (row: readonly string[]): string =>
    row.map((cell, column) => (column === row.length - 1 ? cell : cell.padEnd(widths[column]!))).join("  ");
  return all.map((row) => line(row).trimEnd()).join("\n");
}
