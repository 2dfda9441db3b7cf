import type { Command, Option } from "commander";

/**
 * A completion script for bash or zsh, generated from the commands themselves so that it cannot go stale.
 * zsh reads the bash script through its own `bashcompinit`.
 */
export function completionScript(program: Command, shell: "bash" | "zsh"): string {
  const names = program.commands.map((command) => command.name()).join(" ");
  const cases = program.commands
    .map(
      (command) => `      ${command.name()}) words="${flags([...command.options, ...program.options])}" ;;`,
    )
    .join("\n");
  const bash = `_blockhaul() {
  local word="\${COMP_WORDS[COMP_CWORD]}" words=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="${names} ${flags(program.options)}"
  elif [ "\${word#-}" != "$word" ]; then
    case "\${COMP_WORDS[1]}" in
${cases}
    esac
  else
    COMPREPLY=($(compgen -f -- "$word"))
    return
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o filenames -F _blockhaul blockhaul
`;
  return shell === "bash" ? bash : `autoload -U +X bashcompinit && bashcompinit\n${bash}`;
}

function flags(options: readonly Option[]): string {
  return options.flatMap((option) => option.long ?? []).join(" ");
}
