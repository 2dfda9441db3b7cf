import { resolve } from "node:path";
import { expect } from "vitest";
import { runLinter } from "./linters.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const TRANSFORM = resolve(ROOT, "test/support/sam-transform.py");

export const TEMPLATE = resolve(ROOT, "deploy/lambda/template.yaml");

export type Value = Readonly<Record<string, unknown>>;

export interface Resource {
  readonly Type: string;
  readonly Condition?: string;
  readonly Properties: Value;
}

export interface Statement {
  readonly Sid?: string;
  readonly Effect: string;
  readonly Action: string | readonly string[];
  readonly Resource: unknown;
}

export interface Transformed {
  readonly resources: Readonly<Record<string, Resource>>;
  readonly outputs: Readonly<Record<string, Output>>;
}

export interface Output {
  readonly Value: unknown;
  readonly Export?: { readonly Name: unknown };
}

/** What CloudFormation gets of the template, after SAM's own transform. */
export function transformTemplate(): Transformed {
  const { status, said } = runLinter("python", TRANSFORM, TEMPLATE);
  expect(status, said).toBe(0);
  const made = JSON.parse(said) as {
    Resources: Transformed["resources"];
    Outputs: Transformed["outputs"];
  };
  return { resources: made.Resources, outputs: made.Outputs };
}

/** The name of the resource that a value points to. */
export function target(value: unknown): string {
  const { Ref, "Fn::GetAtt": attribute } = value as { Ref?: string; "Fn::GetAtt"?: string[] };
  return Ref ?? attribute![0]!;
}

/** All that a role, or a policy, allows at most: where there are conditions, what is there with them. */
export function statementsIn({ Properties }: Resource): Statement[] {
  const policies = Properties["PolicyDocument"] === undefined ? Properties["Policies"] : [Properties];
  return ((policies ?? []) as Value[])
    .map((policy) => whenSo(policy) as Value)
    .flatMap(({ PolicyDocument }) => (PolicyDocument as { Statement: Value[] }).Statement)
    .map((statement) => whenSo(statement) as Statement);
}

/** Of `Fn::If` what holds where its condition does. */
export function whenSo(value: unknown): unknown {
  const choice = (value as { "Fn::If"?: unknown[] } | null)?.["Fn::If"];
  return choice === undefined ? value : choice[1];
}
