import { AppError } from "../errors.ts";
import { loadGenerations } from "../repository/generations.ts";
import type { ReadTools } from "../repository/read-tools.ts";
import { verify, type Problem, type VerifyReport, type VerifyRequest } from "./verify.ts";

/** Checks every generation there is, those that cannot be read too. */
export async function verifyAll(
  options: Omit<VerifyRequest, "manifests" | "found" | "complete" | "record">,
  tools: ReadTools,
  run: AbortController,
): Promise<VerifyReport> {
  const found: Problem[] = [];
  const manifests = await loadGenerations(tools.repository, undefined, run.signal, (error, { generation }) =>
    found.push(unreadableManifest(error, generation)),
  );
  return await verify({ ...options, manifests, found, complete: true, record: true }, tools, run);
}

/** Whatever else is wrong with it, it can be forgotten by its id. */
export function unreadableManifest({ message, code }: AppError, generation: string): Problem {
  const hint = `nothing of this generation can be restored; when you have seen enough: blockhaul forget ${generation}`;
  return { message: `${message}: ${hint}`, code, generations: [generation] };
}

/** @throws AppError E_VERIFY (corrupt). */
export function throwIfAny(
  { problems, problemsLeftOut }: Pick<VerifyReport, "problems" | "problemsLeftOut">,
  location: string,
): void {
  const count = problems.length + problemsLeftOut;
  if (count === 0) return;
  const message = `${location}: ${count} ${count === 1 ? "problem" : "problems"} found`;
  throw new AppError("corrupt", "E_VERIFY", message, { count });
}
