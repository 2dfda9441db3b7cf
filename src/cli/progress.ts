import { formatSize } from "../bytes/size.ts";
import type { Output } from "./output.ts";

/** Where a disk's copy stands, in bytes of the disk. */
export interface ProgressState {
  readonly label: string;
  readonly done: number;
  readonly total: number;
  /** "4.1x dedup"; may be empty. */
  readonly note: string;
}

const REDRAW_MS = 200;
const PLAIN_LINE_MS = 30_000;

/** One line that is redrawn on a terminal; a plain line now and then elsewhere; nothing with `--quiet`. */
export class Progress {
  readonly #output: Output;
  #label = "";
  #startedMs = 0;
  #drawnMs = 0;
  #shown = false;

  constructor(output: Output) {
    this.#output = output;
  }

  update(state: ProgressState): void {
    if (this.#output.quiet) return;
    const now = performance.now();
    if (state.label !== this.#label) {
      this.#label = state.label;
      this.#startedMs = now;
      this.#drawnMs = now;
    }
    const everyMs = this.#output.live ? REDRAW_MS : PLAIN_LINE_MS;
    if (now - this.#drawnMs < everyMs) return;
    this.#drawnMs = now;
    const text = describe(state, (now - this.#startedMs) / 1000);
    if (!this.#output.live) {
      this.#output.info(text);
      return;
    }
    process.stderr.write(`\r\u001b[K${text.slice(0, (process.stderr.columns || 80) - 1)}`);
    this.#shown = true;
  }

  /** Clears the line. */
  end(): void {
    if (this.#shown) process.stderr.write("\r\u001b[K");
    this.#shown = false;
  }
}

/** "vda  1.2 GiB / 4.0 GiB  30%  310 MiB/s  ETA 0:09  4.1x dedup" */
function describe(state: ProgressState, seconds: number): string {
  const rate = seconds > 0 ? state.done / seconds : 0;
  const percent = state.total === 0 ? 100 : Math.floor((state.done / state.total) * 100);
  const left = rate > 0 ? (state.total - state.done) / rate : 0;
  const parts = [
    state.label,
    `${formatSize(state.done)} / ${formatSize(state.total)}`,
    `${percent}%`,
    `${formatSize(Math.round(rate))}/s`,
    `ETA ${formatSeconds(left)}`,
    state.note,
  ];
  return parts.filter((part) => part !== "").join("  ");
}

/** "1:02:03" or "0:09". */
export function formatSeconds(seconds: number): string {
  const whole = Math.ceil(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  const tail = String(whole % 60).padStart(2, "0");
  return hours > 0 ? `${hours}:${String(minutes).padStart(2, "0")}:${tail}` : `${minutes}:${tail}`;
}
