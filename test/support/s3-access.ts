import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { AssumeRoleProvider } from "minio/dist/esm/AssumeRoleProvider.mjs";
import type { S3Server } from "./s3-process.ts";

const FOLDER = resolve(import.meta.dirname, "../../deploy/iam");

/** A policy of `deploy/iam` for one repository, as its README says to make it. @param name "writer", "owner", … */
export async function iamPolicy(name: string, bucket: string, prefix: string): Promise<IamPolicy> {
  const text = await readFile(`${FOLDER}/${name}.json`, "utf8");
  return JSON.parse(text.replaceAll("BUCKET", bucket).replaceAll("PREFIX", prefix)) as IamPolicy;
}

export interface IamPolicy {
  readonly Version: string;
  readonly Statement: readonly object[];
}

/**
 * The environment of somebody who may do what the policies allow together, and nothing else: temporary credentials, to
 * which MinIO holds every request.
 */
export async function limitedTo(
  server: S3Server,
  policies: readonly IamPolicy[],
): Promise<Readonly<Record<string, string>>> {
  const policy = JSON.stringify({
    Version: "2012-10-17",
    Statement: policies.flatMap(({ Statement }) => Statement),
  });
  const { accessKey, secretKey, endpoint, region } = server;
  const provider = new AssumeRoleProvider({ stsEndpoint: endpoint, accessKey, secretKey, region, policy });
  const credentials = await provider.getCredentials();
  return {
    ...server.env,
    AWS_ACCESS_KEY_ID: credentials.getAccessKey(),
    AWS_SECRET_ACCESS_KEY: credentials.getSecretKey(),
    AWS_SESSION_TOKEN: credentials.getSessionToken() ?? "",
  };
}
