import { hostname } from "node:os";
import { Command } from "commander";
import { AppError } from "../../errors.ts";
import { repositorySettings } from "../../settings.ts";
import type { ObjectStore } from "../../store/store.ts";
import { openStore } from "../../store/open.ts";
import {
  addKey,
  changePassword,
  listKeys,
  removeKey,
  type KeyReport,
  type KeyStatus,
} from "../../upkeep/keys.ts";
import { action } from "../action.ts";
import { table } from "../output.ts";
import { newPassword, repositoryPassword } from "../password.ts";
import { hasTerminal } from "../terminal.ts";
import type { RepositoryFlags } from "../session.ts";

/** Characters of a label. */
const LABEL_MAX = 256;

const STATUS_TEXT: Readonly<Record<KeyStatus, string>> = {
  opened: "this password",
  sealed: "another password",
  unchecked: "not checked",
  foreign: "NOT OURS",
};

export function keyCommand(): Command {
  return new Command("key")
    .summary("manage the passwords of an encrypted repository")
    .description(
      `Every key opens the repository with a password of its own. The current password comes from BLOCKHAUL_PASSWORD,
BLOCKHAUL_PASSWORD_FILE or BLOCKHAUL_PASSWORD_COMMAND, a new one from BLOCKHAUL_NEW_PASSWORD,
BLOCKHAUL_NEW_PASSWORD_FILE or BLOCKHAUL_NEW_PASSWORD_COMMAND; both are asked for on a terminal otherwise.`,
    )
    .addHelpText(
      "after",
      `
Examples:
  blockhaul key list -r s3://my-bucket/vms
  blockhaul key add -r s3://my-bucket/vms --label 'sheet in the safe'
  blockhaul key passwd -r s3://my-bucket/vms
  blockhaul key remove -r s3://my-bucket/vms 3f0c9a52`,
    )
    .addCommand(listCommand())
    .addCommand(addCommand())
    .addCommand(removeCommand())
    .addCommand(passwdCommand());
}

function listCommand(): Command {
  return new Command("list")
    .alias("ls")
    .summary("list keys, and which one the password opens")
    .addHelpText("after", "\nExample:\n  blockhaul key list -r s3://my-bucket/vms")
    .action(
      action(async (cli, command) => {
        await withStore(command, async (store) => {
          const password = repositoryPassword();
          const asked = password.given || hasTerminal();
          const keys = await listKeys(store, asked ? password : undefined, cli.run.signal);
          for (const { id, damage } of keys) {
            if (damage !== undefined) cli.output.warn(`Key ${id} cannot be used: ${damage.message}`);
          }
          cli.output.result({ keys: keys.map(keyDocument) }, () =>
            table(
              ["KEY", "CREATED", "OPENED BY", "HOST", "LABEL"],
              keys.map(({ id, status, slot }) => [
                id,
                slot?.createdAt.replace(/\.\d+Z$/, "Z") ?? "-",
                STATUS_TEXT[status],
                slot?.host ?? "-",
                slot?.label ?? "-",
              ]),
            ),
          );
        });
      }),
    );
}

function addCommand(): Command {
  return new Command("add")
    .summary("add a password")
    .option("--label <TEXT>", "whose it is, for key list", "")
    .addHelpText("after", "\nExample:\n  blockhaul key add -r s3://my-bucket/vms --label 'sheet in the safe'")
    .action(
      action(async (cli, command) => {
        const { label } = command.optsWithGlobals<{ label: string }>();
        await withStore(command, async (store) => {
          const owner = { label: checkLabel(label), host: hostname() };
          const slot = await addKey(store, repositoryPassword(), newPassword, owner, cli.run.signal);
          cli.output.result({ added: slot.key }, () => `Added key ${slot.key}`);
        });
      }),
    );
}

/** @throws AppError E_LABEL (usage). */
function checkLabel(label: string): string {
  if (label.length <= LABEL_MAX && /^\P{Cc}*$/u.test(label)) return label;
  const message = `--label takes up to ${LABEL_MAX} characters, and no control characters`;
  throw new AppError("usage", "E_LABEL", message);
}

function removeCommand(): Command {
  return new Command("remove")
    .alias("rm")
    .summary("remove a key; never the last one")
    .description(
      `Removes a key: its password opens the repository no more. Whoever has kept a copy of the key and knows its password
can still read what he can fetch; only a new repository helps against that.`,
    )
    .argument("<key>", "its id, or how it begins")
    .addHelpText("after", "\nExample:\n  blockhaul key remove -r s3://my-bucket/vms 3f0c9a52")
    .action(
      action(async (cli, command) => {
        await withStore(command, async (store) => {
          const id = await removeKey(store, repositoryPassword(), command.args[0]!, cli.run.signal);
          cli.output.result({ removed: id }, () => `Removed key ${id}`);
        });
      }),
    );
}

function passwdCommand(): Command {
  return new Command("passwd")
    .summary("change the password")
    .description("Adds a key with the new password, then removes the one that the current password opened.")
    .addHelpText("after", "\nExample:\n  blockhaul key passwd -r s3://my-bucket/vms")
    .action(
      action(async (cli, command) => {
        await withStore(command, async (store) => {
          const password = repositoryPassword();
          const { added, removed } = await changePassword(
            store,
            password,
            newPassword,
            hostname(),
            cli.run.signal,
          );
          cli.output.result(
            { added: added.key, removed: removed.key },
            () => `Changed the password: key ${added.key} in the place of ${removed.key}`,
          );
        });
      }),
    );
}

async function withStore(command: Command, work: (store: ObjectStore) => Promise<void>): Promise<void> {
  const flags = command.optsWithGlobals<RepositoryFlags>();
  const store = await openStore(repositorySettings(flags, process.env).location);
  try {
    await work(store);
  } finally {
    store.close();
  }
}

/** README.md, "JSON", promises these fields. */
function keyDocument({ id, status, slot, damage }: KeyReport): object {
  return {
    key: id,
    status,
    createdAt: slot?.createdAt ?? null,
    host: slot?.host ?? null,
    label: slot?.label ?? null,
    problem: damage?.message ?? null,
  };
}
