/** Characters of the console that are kept. */
const KEPT_MAX = 64 * 1024;
/** Characters before what has just come that a pattern may begin in. */
const OVERLAP = 4096;

/** What colours text and moves the cursor (ECMA-48), and other control characters but line ends and tabs. */
const CONTROLS = new RegExp(
  String.raw`\u001b\[[0-?]*[ -/]*[@-~]|\u001b\][^\u0007\u001b]*(?:\u0007|\u001b\\)|\u001b[ -/]*[0-~]|` +
    String.raw`[\u0000-\u0008\u000b-\u001f\u007f-\u009f]`,
  "g",
);

/** The guest's serial console: its end is kept, and whoever waits for words on it is told. */
export class SerialConsole {
  #text = "";
  readonly #watchers = new Set<{ readonly pattern: RegExp; readonly found: (match: string) => void }>();

  /** Adds what the guest has said. */
  take(piece: string): void {
    const before = this.#text.slice(-OVERLAP);
    const fresh = before + piece;
    this.#text = (this.#text + piece).slice(-KEPT_MAX);
    if (this.#watchers.size === 0) return;
    const readable = fresh.replace(CONTROLS, "");
    for (const watcher of this.#watchers) {
      const match = watcher.pattern.exec(readable);
      if (match === null) continue;
      this.#watchers.delete(watcher);
      watcher.found(match[0]);
    }
  }

  /**
   * Resolves with what matches first of all that comes from now on. Begin before the guest does.
   *
   * @param pattern neither `g` nor `y`; it sees 4 KiB before what has just come, without control characters.
   */
  async said(pattern: RegExp): Promise<string> {
    return await new Promise((found) => this.#watchers.add({ pattern, found }));
  }

  /** The last lines, for people: without control characters. At most `lines`. */
  tail(lines: number): string {
    return this.#text
      .replace(CONTROLS, "")
      .split("\n")
      .map((line) => line.trimEnd())
      .filter((line) => line !== "")
      .slice(-lines)
      .join("\n");
  }
}
