import type { Command } from "commander";
import { AppError } from "../errors.ts";
import { EXIT_WARNINGS, exitCodeOf } from "./exit-codes.ts";
import { Output } from "./output.ts";

/** What every command gets: where to write, and the run that Ctrl-C stops. */
export interface CliContext {
  readonly output: Output;
  readonly run: AbortController;
}

interface GlobalOptions {
  readonly json?: boolean;
  readonly quiet?: boolean;
  readonly strict?: boolean;
}

/**
 * Wraps a command: the first SIGINT or SIGTERM stops the run, which undoes what it did; the second exits at once.
 * Whatever is thrown becomes one line on stderr and an exit code.
 */
export function action(
  work: (cli: CliContext, command: Command) => Promise<void>,
): (...args: unknown[]) => Promise<void> {
  return async (...args) => {
    const command = args.at(-1) as Command;
    const global = command.optsWithGlobals<GlobalOptions>();
    const output = new Output({ json: global.json === true, quiet: global.quiet === true });
    const run = new AbortController();
    const stop = (signal: NodeJS.Signals): void => {
      if (run.signal.aborted) process.exit(130);
      output.info(`${signal}: stopping; once more to exit at once`);
      run.abort(new AppError("cancelled", "E_INTERRUPTED", "Interrupted"));
    };
    process.on("SIGINT", stop).on("SIGTERM", stop);
    try {
      await work({ output, run }, command);
      process.exitCode ??= global.strict === true && output.warnings > 0 ? EXIT_WARNINGS : 0;
    } catch (error) {
      output.error(error);
      process.exitCode = exitCodeOf(error);
    } finally {
      process.off("SIGINT", stop).off("SIGTERM", stop);
    }
  };
}
