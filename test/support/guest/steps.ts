/** A step of a run, by the command that it is known by. */
export interface Step {
  readonly via: "monitor" | "agent";
  readonly command: string;
  /** Counted from this command of the same side on; from the start unless told. */
  readonly since?: string;
  /** So many of this command pass first; 0 unless told. */
  readonly skip?: number;
  /** `before`: it has not reached QEMU or the guest. `after`: it was done and answered, and the run does not know. */
  readonly when: "before" | "after";
}

export function monitor(command: string, when: Step["when"], more: Partial<Step> = {}): Step {
  return { via: "monitor", command, when, ...more };
}

export function agent(command: string, when: Step["when"], more: Partial<Step> = {}): Step {
  return { via: "agent", command, when, ...more };
}

/** All is read, the run looks a last time whether it was the instant, and nothing is committed. */
export const ALL_READ = monitor("query-jobs", "before", { since: "block-export-add" });

/** What happens at a step. It gives "dead" when the run has ended: a command that has not reached its peer never will. */
type Act = () => Promise<unknown>;

/** Waits for steps of a run, each once. */
export class Steps {
  readonly #armed: { readonly step: Step; readonly act: Act; waiting: boolean; left: number }[] = [];

  at(step: Step, act: Act): void {
    this.#armed.push({ step, act, waiting: step.since !== undefined, left: step.skip ?? 0 });
  }

  /** @returns whether the run has ended at this step. */
  async passed(via: Step["via"], command: string, when: Step["when"]): Promise<boolean> {
    for (const [index, armed] of this.#armed.entries()) {
      const { step, act } = armed;
      if (step.via !== via) continue;
      if (command === step.since) armed.waiting = false;
      if (armed.waiting || step.command !== command || step.when !== when || armed.left-- > 0) continue;
      this.#armed.splice(index, 1);
      return (await act()) === "dead";
    }
    return false;
  }
}
