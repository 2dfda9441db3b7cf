import { execFile } from "node:child_process";

/** What one notification may take, milliseconds. */
const NOTIFY_MS = 10_000;

type Environment = Readonly<Record<string, string | undefined>>;

/** Variables by which a service manager says where it listens: nobody whom we start has to answer it. */
export const NOTIFY_VARIABLES = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] as const;

/**
 * Tells systemd how the service is (sd_notify). Node has no datagram sockets of AF_UNIX, so that `systemd-notify` speaks for
 * us, a child of ours: the unit needs `NotifyAccess=all`.
 *
 * Without a manager that listens, all of it does nothing. What goes wrong is told once, and is no failure of the service.
 */
export class ServiceManager {
  readonly #environment: Environment;
  readonly #warn: (message: string) => void;
  #warned = false;
  #timer: NodeJS.Timeout | undefined;

  /** @param environment with `NOTIFY_VARIABLES`, where there are any. */
  constructor(environment: Environment, warn: (message: string) => void) {
    this.#environment = environment;
    this.#warn = warn;
  }

  /** The service is up. From now on the watchdog is fed, twice as often as it asks for. */
  async ready(): Promise<void> {
    await this.#tell("READY=1");
    const everyMs = Number(this.#environment["WATCHDOG_USEC"] ?? 0) / 1000 / 2;
    if (everyMs > 0 && this.#listens) {
      this.#timer = setInterval(() => void this.#tell("WATCHDOG=1"), everyMs);
      this.#timer.unref();
    }
  }

  /** What the service does, in a sentence. */
  async status(text: string): Promise<void> {
    await this.#tell(`STATUS=${text.replaceAll("\n", " ").slice(0, 200)}`);
  }

  /** The service goes down; the watchdog is fed until `end`. */
  async stopping(): Promise<void> {
    await this.#tell("STOPPING=1");
  }

  end(): void {
    clearInterval(this.#timer);
  }

  get #listens(): boolean {
    return (this.#environment["NOTIFY_SOCKET"] ?? "") !== "";
  }

  async #tell(state: string): Promise<void> {
    if (!this.#listens) return;
    const { NOTIFY_SOCKET, PATH } = this.#environment;
    const options = { env: { NOTIFY_SOCKET, PATH }, timeout: NOTIFY_MS };
    await new Promise<void>((resolve) => {
      execFile("systemd-notify", [state], options, (error) => {
        if (error !== null && !this.#warned) {
          this.#warned = true;
          this.#warn(`systemd cannot be told how the service is: ${error.message.trim()}`);
        }
        resolve();
      });
    });
  }
}
