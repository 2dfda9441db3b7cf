import { spawnSync } from "node:child_process";
import type { Command } from "commander";
import { buildProgram } from "../../src/cli/main.ts";

/** Every command, also those of a command, and the words that call it. */
export function commandsBelow(
  command: Command,
  path: readonly string[] = [],
): { command: Command; path: string[] }[] {
  return command.commands.flatMap((below) => {
    const words = [...path, below.name()];
    return [{ command: below, path: words }, ...commandsBelow(below, words)];
  });
}

/** Lets the program read a command line and do nothing. @throws CommanderError for what it would refuse. */
export async function parseLine(line: string): Promise<void> {
  await parseWords(words(line.replace(/^blockhaul/, "")));
}

/** As `parseLine`. @param args without the program's name. */
export async function parseWords(args: readonly string[]): Promise<void> {
  const program = buildProgram().exitOverride();
  const quiet = { writeErr: () => undefined, writeOut: () => undefined };
  for (const { command } of [{ command: program }, ...commandsBelow(program)]) command.configureOutput(quiet);
  for (const { command } of commandsBelow(program)) {
    if (command.commands.length === 0) command.action(() => undefined);
  }
  await program.parseAsync(args, { from: "user" });
}

/** The words of a command line, as a shell takes it apart. */
function words(line: string): string[] {
  const { status, stdout } = spawnSync("bash", ["-c", `printf '%s\\0' ${line}`], { encoding: "utf8" });
  if (status !== 0) throw new Error(`bash does not understand: ${line}`);
  return stdout.split("\0").slice(0, -1);
}
