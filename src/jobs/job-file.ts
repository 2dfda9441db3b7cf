import { open } from "node:fs/promises";
import { LineCounter, parseDocument, type Document } from "yaml";
import type { z } from "zod";
import { MiB } from "../bytes/size.ts";
import { AppError, messageOf, systemCode } from "../errors.ts";
import { interpolate, type Environment } from "./interpolate.ts";
import { placeOf, type Place } from "./places.ts";
import { checkReferences, type Finding } from "./references.ts";
import { jobFileJsonSchema, jobFileSchema, type JobFile } from "./schema.ts";

/** Bytes of a file of jobs. */
const FILE_SIZE_MAX = MiB;

/** How often one value may stand in a file by its anchor: a few lines can otherwise name more than memory holds. */
const ALIASES_MAX = 100;

/** Problems that are listed; nobody mends more at a time. */
const PROBLEMS_MAX = 100;

/** What is wrong with a file of jobs, and where. */
export interface JobFileProblem extends Place {
  /** "jobs.nightly.repository"; "" for the file as a whole. */
  readonly path: string;
  readonly message: string;
}

/** A file that can be run, or all that is wrong with it. */
export type ReadJobFile =
  | { readonly file: JobFile; readonly problems: readonly [] }
  | { readonly file: undefined; readonly problems: readonly JobFileProblem[] };

/**
 * Reads the text of a `blockhaul.yaml`.
 *
 * @returns with problems, in the order of the file: all there are, or, of a text that is no YAML, those of YAML.
 */
export function parseJobFile(text: string, environment: Environment): ReadJobFile {
  const lines = new LineCounter();
  let document: Document;
  let raw: unknown;
  try {
    document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
    raw = document.toJS({ maxAliasCount: ALIASES_MAX });
  } catch (error) {
    return problems([
      { line: 1, column: 1, path: "", message: `it cannot be read as YAML: ${messageOf(error)}` },
    ]);
  }
  const faults = [...document.errors, ...document.warnings];
  if (faults.length > 0) {
    return problems(faults.map(({ message, pos }) => ({ ...position(lines, pos[0]), path: "", message })));
  }
  const findings: Finding[] = [];
  const filled = interpolate(raw, environment, (path, variable) => {
    findings.push({
      path,
      message: `the environment has no ${variable}; set it, or write \${${variable}:-default}`,
    });
  });
  const parsed = jobFileSchema.safeParse(filled);
  const missing = new Set(findings.map(({ path }) => path.join("\0")));
  const issues = (parsed.error?.issues ?? []).filter(({ path }) => !missing.has(path.join("\0")));
  const all = [
    ...[...findings, ...checkReferences(filled)].map((one) => found(document, lines, one)),
    ...issues.flatMap((issue) => problemsOf(document, lines, issue)),
  ];
  if (parsed.success && all.length === 0) return { file: parsed.data, problems: [] };
  return problems(all);
}

/**
 * Reads a `blockhaul.yaml`. @throws AppError (usage) E_NO_JOB_FILE; E_JOB_FILE, whose message has a line for each problem.
 */
export async function loadJobFile(path: string, environment: Environment): Promise<JobFile> {
  const read = parseJobFile(await readText(path), environment);
  if (read.file !== undefined) return read.file;
  throw jobFileError(path, read.problems);
}

/** The text of the file at `path`. @throws AppError E_NO_JOB_FILE, E_JOB_FILE (usage). */
export async function readText(path: string): Promise<string> {
  try {
    const file = await open(path);
    try {
      const buffer = Buffer.alloc(FILE_SIZE_MAX + 1);
      let length = 0;
      for (;;) {
        const { bytesRead } = await file.read(buffer, length, buffer.length - length, null);
        length += bytesRead;
        if (bytesRead === 0 || length === buffer.length) break;
      }
      if (length <= FILE_SIZE_MAX) return buffer.toString("utf8", 0, length);
    } finally {
      await file.close();
    }
  } catch (error) {
    const hint = systemCode(error) === "ENOENT" ? "; write one, or give --config FILE" : "";
    const message = `The jobs in ${path} cannot be read: ${messageOf(error)}${hint}`;
    throw new AppError("usage", "E_NO_JOB_FILE", message, { path }, error);
  }
  throw new AppError("usage", "E_JOB_FILE", `${path} is larger than 1 MiB: it cannot be a file of jobs`, {
    path,
  });
}

/** A line for each problem, as compilers write them. */
export function jobFileError(path: string, all: readonly JobFileProblem[]): AppError {
  const lines = all.map(({ line, column, path: field, message }) => {
    return `  ${path}:${line}:${column}: ${field === "" ? "" : `${field}: `}${message}`;
  });
  const count = `${all.length} ${all.length === 1 ? "problem" : "problems"}`;
  const context = { path, problems: all.length, line: all[0]?.line, column: all[0]?.column };
  return new AppError("usage", "E_JOB_FILE", `${path} has ${count}:\n${lines.join("\n")}`, context);
}

function problems(all: readonly JobFileProblem[]): ReadJobFile {
  const sorted = all.toSorted((a, b) => a.line - b.line || a.column - b.column);
  return { file: undefined, problems: sorted.slice(0, PROBLEMS_MAX) };
}

function found(document: Document, lines: LineCounter, { path, message }: Finding): JobFileProblem {
  return { ...placeOf(document, lines, path), path: path.join("."), message };
}

function problemsOf(document: Document, lines: LineCounter, issue: z.core.$ZodIssue): JobFileProblem[] {
  const { path } = issue;
  if (issue.code === "unrecognized_keys") {
    return issue.keys.map((key) => ({
      ...placeOf(document, lines, [...path, key], true),
      path: path.join("."),
      message: unknownField(key, path),
    }));
  }
  const message =
    issue.code === "invalid_key"
      ? issue.issues.map((one) => one.message).join(", ")
      : issue.message.replace(/^Invalid input: expected (\w+), received undefined$/, "is missing");
  return [{ ...placeOf(document, lines, path, issue.code === "invalid_key"), path: path.join("."), message }];
}

function unknownField(key: string, path: readonly PropertyKey[]): string {
  if (key === "password") {
    return "a password itself has no place in this file; give password_file, password_command or password_env";
  }
  return `there is no field ${key}; there are ${fieldsAt(path).join(", ")}`;
}

/** The fields that the schema has at a path. */
function fieldsAt(path: readonly PropertyKey[]): string[] {
  let at = jobFileJsonSchema() as Schema | undefined;
  for (const segment of path) at = at?.properties?.[String(segment)] ?? at?.additionalProperties ?? at?.items;
  return Object.keys(at?.properties ?? {});
}

interface Schema {
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly additionalProperties?: Schema;
  readonly items?: Schema;
}

function position(lines: LineCounter, offset: number): Place {
  const { line, col } = lines.linePos(offset);
  return { line, column: col };
}
