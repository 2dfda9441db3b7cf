/** Something that a repair did, or, as a dry run, would do. */
export interface RepairAction {
  /** `kept`: it stays as it is, and `why` says so long as what. */
  readonly action: "write" | "remove" | "rewrite" | "record" | "kept";
  /** The object's key. */
  readonly object: string;
  readonly why: string;
}

/** What the steps of a repair share. */
export interface RepairStep {
  /** True: everything is looked at, nothing is written. */
  readonly dryRun: boolean;
  /** Told of each action when it is done; as a dry run, of what would be done. */
  readonly act: (action: RepairAction) => void;
}
