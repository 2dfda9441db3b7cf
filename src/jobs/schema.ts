import { z } from "zod";
import { parseSize } from "../bytes/size.ts";
import { AppError } from "../errors.ts";
import { IMAGE_FORMATS, imageFormat } from "../image/formats.ts";
import { isImageSource, isLibvirtSource, isQmpSource, parseQueueUrl, sourceSettings } from "../settings.ts";
import { parseRate } from "../store/allowance.ts";
import { parseLocation } from "../store/location.ts";
import { Calendar, parseDuration } from "../upkeep/calendar.ts";
import { parseGrace } from "../upkeep/prune/grace.ts";
import { parseMaxRepack, parseMaxUnused } from "../upkeep/prune/rewrite-limits.ts";
import { parseSpan } from "./span.ts";

/** What may stand in `blockhaul.yaml`, as it is written there; `deploy/blockhaul.schema.json` is made from it. */

const COUNT_MAX = 100_000;
const ENTRIES_MAX = 10_000;

/** Text that `parse` takes; what it throws is the problem. */
function text<T>(description: string, parse: (text: string) => T): z.ZodType<T, string> {
  return z
    .string()
    .max(4096)
    .transform((value, context): T => attempt(value, parse, context))
    .meta({ description });
}

/** The same, where a bare number is as good. */
function numeric<T>(description: string, parse: (text: string) => T): z.ZodType<T, string | number> {
  return z
    .union([z.string().max(64), z.number()], { error: "not a number or text" })
    .transform((value, context): T => attempt(String(value), parse, context))
    .meta({ description });
}

function attempt<T>(value: string, parse: (text: string) => T, context: z.RefinementCtx): T {
  try {
    return parse(value);
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
    context.addIssue({ code: "custom", message: error.message });
    return z.NEVER;
  }
}

/** As `parse`, but the text itself is kept. */
const same =
  (parse: (text: string) => unknown) =>
  (value: string): string => {
    parse(value);
    return value;
  };

/** Also names of sources in the repository; none begins with "_" or ".", as `__proto__` does. */
const name = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/, "not a name of A-Z a-z 0-9 . _ -");

const named = <T extends z.ZodType>(value: T): z.ZodRecord<typeof name, T> => z.record(name, value);

const commandLine = (description: string): z.ZodString => z.string().min(1).max(16_384).meta({ description });

const path = (description: string): z.ZodString => z.string().min(1).max(4096).meta({ description });

const absolutePath = (description: string): z.ZodString =>
  path(description).regex(/^\//, "not an absolute path: QEMU has to find it too");

const oneOf = <const T extends readonly string[]>(values: T): z.ZodEnum<{ [K in T[number]]: K }> =>
  z.enum(values, { error: `not one of ${values.join(", ")}` });

const repository = z
  .strictObject({
    url: text(
      "s3://BUCKET/PREFIX (with ?endpoint=…&region=…&path-style=true), a path, or file:///PATH",
      same(parseLocation),
    ),
    password_file: path("File that holds the password").optional(),
    password_command: commandLine("Command line for sh that prints the password").optional(),
    password_env: z
      .string()
      .regex(/^[A-Za-z_][A-Za-z0-9_]*$/, "not the name of a variable")
      .meta({ description: "Environment variable that holds the password" })
      .optional(),
  })
  .superRefine(({ password_file, password_command, password_env }, context) => {
    const given = [password_file, password_command, password_env].filter((one) => one !== undefined);
    if (given.length > 1)
      context.addIssue({ code: "custom", message: "the password comes from one place only" });
  })
  .readonly();

const source = z
  .strictObject({
    uri: text(
      "libvirt:DOMAIN, qmp:/path/to/qmp.sock, image:/path/to/disk.qcow2, or one NBD URI",
      same((uri) => sourceSettings(uri, [], "any")),
    ).optional(),
    uris: named(
      text(
        "NBD URI of the disk, or image:PATH",
        same((uri) => sourceSettings(undefined, [`disk=${uri}`], "any")),
      ),
    )
      .meta({ description: "Several NBD exports, or images, as the disks of one source: DISK: URI" })
      .optional(),
    format: oneOf(IMAGE_FORMATS)
      .meta({ description: "image: its format, where its name does not tell" })
      .optional(),
    leave_images: z.boolean().meta({ description: "image: begin no dirty bitmap in it" }).optional(),
    disks: z
      .array(name)
      .min(1)
      .max(ENTRIES_MAX)
      .readonly()
      .meta({ description: "qmp, libvirt: only these disks" })
      .optional(),
    connect: z
      .string()
      .min(1)
      .max(4096)
      .meta({ description: "libvirt: the connection, as qemu:///system" })
      .optional(),
    guest_agent: path("qmp: socket of the guest agent").optional(),
    freeze: oneOf(["auto", "require", "off"]).optional(),
    freeze_budget: text(
      "qmp, libvirt: the longest that the guest may stand frozen, at most 60s",
      parseFreeze,
    ).optional(),
    fleecing: oneOf(["auto", "classic", "filter"]).optional(),
    scratch: absolutePath("qmp, libvirt: folder for what the guest overwrites meanwhile").optional(),
    scratch_size: numeric("qmp, libvirt: the most that may take", parseSize).optional(),
    connections: z.int().min(1).max(16).meta({ description: "NBD connections a disk" }).optional(),
    dedup: oneOf(["repository", "source", "off"]).optional(),
    tags: z
      .record(
        z.string().regex(/^[A-Za-z0-9._-]{1,64}$/, "not a key of A-Z a-z 0-9 . _ -"),
        z.string().max(256),
      )
      .readonly()
      .optional(),
    queue: name.meta({ description: "The one of queues that its host's agent takes orders from" }).optional(),
  })
  .superRefine((entry, context) => {
    if ((entry.uri === undefined) === (entry.uris === undefined)) {
      context.addIssue({ code: "custom", message: "give either uri, or uris with one for each disk" });
      return;
    }
    const images = [entry.uri ?? "", ...Object.values(entry.uris ?? {})].filter(isImageSource);
    for (const image of images) attempt(image, (path) => imageFormat(path, entry.format), context);
    for (const field of IMAGE_ONLY.filter((one) => images.length === 0 && entry[one] !== undefined)) {
      const message = "only of an image that no VM runs on (uri: image:PATH)";
      context.addIssue({ code: "custom", path: [field], message });
    }
    const { uri = "" } = entry;
    for (const { fields, of } of VM_FIELDS.filter((one) => !one.isOf(uri))) {
      for (const field of fields.filter((one) => entry[one] !== undefined)) {
        context.addIssue({ code: "custom", path: [field], message: `only of ${of}` });
      }
    }
  })
  .readonly();

const IMAGE_ONLY = ["format", "leave_images"] as const;

const VM_FIELDS = [
  {
    fields: ["disks", "freeze", "freeze_budget", "scratch", "scratch_size"],
    of: "a QEMU that runs (uri: qmp:PATH or libvirt:DOMAIN)",
    isOf: (uri: string) => isQmpSource(uri) || isLibvirtSource(uri),
  },
  {
    fields: ["guest_agent", "fleecing"],
    of: "a QEMU that is backed up over its monitor (uri: qmp:PATH)",
    isOf: isQmpSource,
  },
  { fields: ["connect"], of: "a domain of libvirt (uri: libvirt:DOMAIN)", isOf: isLibvirtSource },
] as const;

const count = z.int().min(1).max(COUNT_MAX).optional();

const retention = z
  .strictObject({
    keep_last: count,
    keep_hourly: count,
    keep_daily: count,
    keep_weekly: count,
    keep_monthly: count,
    keep_yearly: count,
    keep_within: text("14d, 6m, 1y2m, 36h", same(parseDuration)).optional(),
    keep_tags: z
      .array(z.string().regex(/^[A-Za-z0-9._-]{1,64}=.{0,256}$/, "not KEY=VALUE"))
      .readonly()
      .optional(),
    timezone: text(
      "Whose days and weeks: an IANA name",
      same((zone) => new Calendar(zone)),
    ).optional(),
  })
  .superRefine((fields, context) => {
    if (Object.entries(fields).some(([field, rule]) => field !== "timezone" && rule !== undefined)) return;
    const message = "no rule keeps anything: give at least one, as keep_last: 7";
    context.addIssue({ code: "custom", message });
  })
  .readonly();

const span = (description: string): z.ZodType<number, string> => text(description, parseSpan);

const upkeep = {
  every: span("Not again before so much time has passed").optional(),
};

const verifyRota = z
  .strictObject({
    percent: z
      .number()
      .min(0)
      .max(100)
      .meta({
        description: "How many of the packs are read each time; 0: only what leads to them is checked",
      })
      .optional(),
    ...upkeep,
  })
  .readonly();

const pruneRota = z
  .strictObject({
    grace: text("24h, 3d, 2w", parseGrace).optional(),
    max_unused: text("5%, 20GiB, unlimited", parseMaxUnused).optional(),
    max_repack_bytes: numeric("50GiB, unlimited", parseMaxRepack).optional(),
    ...upkeep,
  })
  .readonly();

const hooks = z
  .strictObject({
    before: commandLine("Before each source's backup; if it fails there is no backup").optional(),
    after: commandLine("After each source that went well").optional(),
    on_failure: commandLine("After each source, and each upkeep, that did not").optional(),
    timeout: span("The longest that one of them may take").optional(),
  })
  .readonly();

const job = z
  .strictObject({
    repository: name,
    sources: z.array(name).min(1).max(ENTRIES_MAX).readonly(),
    retention: retention.optional(),
    verify: verifyRota.optional(),
    prune: pruneRota.optional(),
    rpo: span("The newest generation of each source should never be older").optional(),
    limit_upload: numeric("Bytes a second", parseRate).optional(),
    limit_download: numeric("Bytes a second", parseRate).optional(),
    max_requests: z
      .int()
      .min(1)
      .meta({ description: "Requests to the storage after which a run of the job ends" })
      .optional(),
    hooks: hooks.optional(),
  })
  .readonly();

export const jobFileSchema = z
  .strictObject({
    repositories: named(repository),
    sources: named(source),
    jobs: named(job),
    queues: named(text("URL of a queue of SQS", same(parseQueueUrl)))
      .meta({ description: "Where dispatch sends orders for sources that name one of these: NAME: URL" })
      .optional(),
    prices: path("File of prices for estimates, instead of those that are built in").optional(),
  })
  .readonly();

/** A whole file, its values read: sizes in bytes, spans in milliseconds. */
export type JobFile = z.infer<typeof jobFileSchema>;
export type RepositoryEntry = z.infer<typeof repository>;
export type SourceEntry = z.infer<typeof source>;
export type JobEntry = z.infer<typeof job>;
export type RetentionEntry = z.infer<typeof retention>;
export type HooksEntry = z.infer<typeof hooks>;

/** Fields that `sh` reads: what looks like a variable there is none of ours. */
export const SHELL_FIELDS: ReadonlySet<string> = new Set([
  "password_command",
  "before",
  "after",
  "on_failure",
]);

/** The JSON schema that editors check the file with. */
export function jobFileJsonSchema(): object {
  return {
    title: "blockhaul.yaml",
    description:
      "Jobs of Blockhaul: which sources go to which repository, and what becomes of their generations",
    ...z.toJSONSchema(jobFileSchema, {
      io: "input",
      override: ({ jsonSchema }) => delete jsonSchema.readOnly, // of the value in our memory, not of the file
    }),
  };
}

function parseFreeze(value: string): number {
  const ms = parseSpan(value);
  if (ms <= 60_000) return ms;
  throw new AppError("usage", "E_SPAN", `A guest cannot stand frozen for ${value}; at most 60s`);
}
