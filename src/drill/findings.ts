import type { AppError } from "../errors.ts";
import type { DrillProof } from "../repository/drills.ts";
import type { Accelerator } from "./accelerator.ts";
import type { CheckedVolume } from "./check-files.ts";
import type { SerialConsole } from "./console.ts";
import type { WatchedDisk } from "./watched-disk.ts";

/** What came of a drill. */
export interface DrillResult {
  readonly proofs: readonly DrillProof[];
  /** Why it failed; undefined: it passed. */
  readonly failure: AppError | undefined;
  readonly accelerator: Accelerator | null;
  readonly seconds: number;
  readonly bytesFetched: number;
  readonly bytesRead: number;
  readonly bytesWritten: number;
  /** What was checked from outside; none when a guest was booted. */
  readonly volumes: readonly CheckedVolume[];
  /** The last lines of the guest's console, for people. */
  readonly console: string;
}

/** Lines of the console that are shown. */
const CONSOLE_LINES = 25;

/** Facts that are gathered on the way, and count whatever happens. */
export class Findings {
  readonly #startedMs: number;
  readonly #proofs = new Map<DrillProof["kind"], number | null>();
  bytesFetched = (): number => 0;
  disks: readonly WatchedDisk[] = [];
  console: SerialConsole | undefined;
  readonly volumes: CheckedVolume[] = [];

  constructor(startedMs: number, asked: readonly DrillProof["kind"][]) {
    this.#startedMs = startedMs;
    for (const kind of asked) this.#proofs.set(kind, null);
  }

  get seconds(): number {
    return (performance.now() - this.#startedMs) / 1000;
  }

  get missing(): readonly DrillProof["kind"][] {
    return [...this.#proofs].flatMap(([kind, seconds]) => (seconds === null ? [kind] : []));
  }

  shown(kind: DrillProof["kind"]): void {
    this.#proofs.set(kind, this.seconds);
  }

  result(accelerator: Accelerator | null, failure: AppError | undefined): DrillResult {
    const sum = (pick: (disk: WatchedDisk) => number): number =>
      this.disks.reduce((total, disk) => total + pick(disk), 0);
    return {
      proofs: [...this.#proofs].map(([kind, seconds]) => ({ kind, seconds })),
      failure,
      accelerator,
      seconds: this.seconds,
      bytesFetched: this.bytesFetched(),
      bytesRead: sum(({ use }) => use.bytesRead),
      bytesWritten: sum(({ use }) => use.bytesWritten),
      volumes: this.volumes,
      console: this.console?.tail(CONSOLE_LINES) ?? "",
    };
  }
}
