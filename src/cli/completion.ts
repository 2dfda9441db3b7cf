import type { Command, Option } from "commander";

/**
 * A completion script for bash or zsh, generated from the commands themselves so that it cannot go stale.
 * zsh reads the bash script through its own `bashcompinit`.
 */
export function completionScript(program: Command, shell: "bash" | "zsh"): string {
  const groups = program.commands.filter(({ commands }) => commands.length > 0);
  const leaves = program.commands.flatMap((command) =>
    command.commands.length === 0
      ? [{ path: command.name(), command }]
      : command.commands.map((below) => ({ path: `${command.name()} ${below.name()}`, command: below })),
  );
  const bash = `_blockhaul() {
  local word="\${COMP_WORDS[COMP_CWORD]}" words="" below=""
  COMPREPLY=()
  case "\${COMP_WORDS[1]}" in
${groups.map((group) => `    ${group.name()}) below="${names(group)}" ;;`).join("\n")}
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="${names(program)} ${flags(program.options)}"
  elif [ "$COMP_CWORD" -eq 2 ] && [ -n "$below" ]; then
    words="$below"
  elif [ "\${word#-}" != "$word" ]; then
    case "\${COMP_WORDS[1]}\${below:+ \${COMP_WORDS[2]}}" in
${leaves
  .map(
    ({ path, command }) => `      "${path}") words="${flags([...command.options, ...program.options])}" ;;`,
  )
  .join("\n")}
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

function names(command: Command): string {
  return command.commands.map((below) => below.name()).join(" ");
}

function flags(options: readonly Option[]): string {
  return options.flatMap((option) => option.long ?? []).join(" ");
}
