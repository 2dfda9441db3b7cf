import type { FirstKey } from "../../src/repository/config.ts";
import type { Password } from "../../src/repository/key-slots.ts";

/** A password as if it stood in the environment. */
export function given(text: string): Password {
  return { given: true, origin: "BLOCKHAUL_PASSWORD", read: () => Promise.resolve(Buffer.from(text)) };
}

/** A password as if somebody typed it when asked. */
export function typed(text: string): Password {
  return { ...given(text), given: false };
}

/** What `createRepository` makes an encrypted repository with. */
export function firstKey(text: string): FirstKey {
  return { password: Buffer.from(text), notes: { label: "first", host: "test" } };
}
