import { z } from "zod";

const member = z.object({ name: z.string(), type: z.string() });

/** What is used of query-qmp-schema's SchemaInfo (qapi/introspect.json). Types go by numbers made up by QEMU. */
const infoSchema = z.discriminatedUnion("meta-type", [
  z.object({ "meta-type": z.literal("builtin"), name: z.string() }),
  z.object({ "meta-type": z.literal("enum"), name: z.string(), values: z.array(z.string()) }),
  z.object({ "meta-type": z.literal("array"), name: z.string(), "element-type": z.string() }),
  z.object({
    "meta-type": z.literal("object"),
    name: z.string(),
    members: z.array(member),
    tag: z.string().optional(),
    variants: z.array(z.object({ case: z.string(), type: z.string() })).optional(),
  }),
  z.object({
    "meta-type": z.literal("alternate"),
    name: z.string(),
    members: z.array(z.object({ type: z.string() })),
  }),
  z.object({ "meta-type": z.literal("command"), name: z.string(), "arg-type": z.string() }),
  z.object({ "meta-type": z.literal("event"), name: z.string() }),
]);

type SchemaInfo = z.infer<typeof infoSchema>;

/** More types than any QEMU has (11.1: 1,300 of all sorts). */
const INFOS_MAX = 20_000;

/** @returns undefined when the answer of query-qmp-schema is not what it should be. */
export function parseSchema(answer: unknown): QmpSchema | undefined {
  const { success, data } = z.array(infoSchema).max(INFOS_MAX).safeParse(answer);
  return success ? new QmpSchema(data) : undefined;
}

/**
 * What a QEMU can do, by its own word (query-qmp-schema), in place of guesses by its version.
 *
 * A path names an argument by its members, from the command's arguments inwards; arrays are passed through. A member
 * that only a variant has is found in any of them, unless an element of the path picks one: `driver=file`.
 *
 *     schema.hasArgument("blockdev-backup", ["on-cbw-error"])
 *     schema.hasArgument("blockdev-add", ["driver=copy-before-write", "cbw-timeout"])
 *     schema.valuesOf("transaction", ["actions", "type"])
 */
export class QmpSchema {
  readonly #byName: ReadonlyMap<string, SchemaInfo>;

  constructor(infos: readonly SchemaInfo[]) {
    this.#byName = new Map(infos.map((info) => [info.name, info]));
  }

  hasCommand(name: string): boolean {
    return this.#byName.get(name)?.["meta-type"] === "command";
  }

  hasEvent(name: string): boolean {
    return this.#byName.get(name)?.["meta-type"] === "event";
  }

  hasArgument(command: string, path: readonly string[]): boolean {
    return this.#resolve(command, path).size > 0;
  }

  /** The values of an argument that is an enumeration; empty when there is no such argument. */
  valuesOf(command: string, path: readonly string[]): readonly string[] {
    const values = [...this.#resolve(command, path)].flatMap((type) => {
      const info = this.#byName.get(type);
      return info?.["meta-type"] === "enum" ? info.values : [];
    });
    return [...new Set(values)];
  }

  /** The types that stand at the end of the path. */
  #resolve(command: string, path: readonly string[]): ReadonlySet<string> {
    const info = this.#byName.get(command);
    if (info?.["meta-type"] !== "command") return new Set();
    let types: ReadonlySet<string> = new Set([info["arg-type"]]);
    for (const step of path) {
      const objects = this.#objectsOf(types);
      types = new Set(objects.flatMap((object) => this.#step(object, step)));
    }
    return types;
  }

  /** Looks through arrays and alternates. */
  #objectsOf(types: ReadonlySet<string>): readonly (SchemaInfo & { "meta-type": "object" })[] {
    const seen = new Set(types); // grows while it is walked
    const objects = [];
    for (const type of seen) {
      const info = this.#byName.get(type);
      if (info?.["meta-type"] === "object") objects.push(info);
      else if (info?.["meta-type"] === "array") seen.add(info["element-type"]);
      else if (info?.["meta-type"] === "alternate") for (const { type } of info.members) seen.add(type);
    }
    return objects;
  }

  #step(object: SchemaInfo & { "meta-type": "object" }, step: string): readonly string[] {
    const [tag, picked] = step.split("=");
    if (picked !== undefined) {
      const variants = tag === object.tag ? (object.variants ?? []) : [];
      return variants.filter(({ case: of }) => of === picked).map(({ type }) => type);
    }
    return this.#membersOf(object, step);
  }

  /** The types of an object's member, or else of that member in its variants, and in theirs. */
  #membersOf(object: SchemaInfo & { "meta-type": "object" }, step: string): readonly string[] {
    const objects = new Set([object]); // grows while it is walked, and each comes once: variants may go in circles
    const found: string[] = [];
    for (const { members, variants = [] } of objects) {
      const own = members.filter(({ name }) => name === step);
      found.push(...own.map(({ type }) => type));
      if (own.length > 0) continue;
      for (const { type } of variants) {
        const info = this.#byName.get(type);
        if (info?.["meta-type"] === "object") objects.add(info);
      }
    }
    return found;
  }
}
