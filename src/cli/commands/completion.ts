import { Command } from "commander";
import { AppError } from "../../errors.ts";
import { completionScript } from "../completion.ts";
import { action } from "../action.ts";

export function completionCommand(): Command {
  return new Command("completion")
    .summary("print a completion script for bash or zsh")
    .argument("<shell>", "bash or zsh")
    .addHelpText(
      "after",
      "\nExamples:\n  source <(blockhaul completion bash)\n  source <(blockhaul completion zsh)",
    )
    .action(
      action((_cli, command) => {
        const shell = command.args[0];
        if (shell !== "bash" && shell !== "zsh") {
          throw new AppError("usage", "E_SHELL", `No completion for "${shell ?? ""}"; choose bash or zsh`);
        }
        process.stdout.write(completionScript(command.parent!, shell));
        return Promise.resolve();
      }),
    );
}
