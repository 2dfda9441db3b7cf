import { readFile, readdir, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { describe, expect, test } from "vitest";
import { EXIT_CODE } from "../../src/cli/exit-codes.ts";
import { parseWords } from "../support/command-lines.ts";
import { temporaryFolder } from "../support/folder.ts";
import { runLinter } from "../support/linters.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const FOLDER = join(ROOT, "deploy/kubernetes");

/** Of Kubernetes, the newest of each. */
const VERSIONS = ["1.35.0", "1.36.0", "1.37.0"];

interface Container {
  readonly image: string;
  readonly args: readonly string[];
  readonly env: readonly { readonly name: string }[];
  readonly envFrom: readonly { readonly secretRef: { readonly name: string } }[];
  readonly securityContext: object;
  readonly resources: { readonly limits: object };
  readonly volumeMounts: readonly { readonly name: string; readonly mountPath: string }[];
}

interface PodSpec {
  readonly serviceAccountName: string;
  readonly automountServiceAccountToken: boolean;
  readonly restartPolicy: string;
  readonly securityContext: object;
  readonly containers: readonly [Container];
  readonly volumes: readonly { readonly name: string }[];
}

interface Manifest {
  readonly kind: string;
  readonly metadata: { readonly name?: string; readonly labels: Readonly<Record<string, string>> };
  readonly spec?: {
    readonly template?: Template;
    readonly jobTemplate?: {
      readonly spec: { readonly template: Template; readonly podFailurePolicy: object };
    };
    readonly podSelector?: { readonly matchLabels: Readonly<Record<string, string>> };
    readonly egress?: readonly { readonly ports: readonly { readonly port: number }[] }[];
  };
  readonly data?: Readonly<Record<string, string>>;
}

interface Template {
  readonly metadata: { readonly labels: Readonly<Record<string, string>> };
  readonly spec: PodSpec;
}

const files = (await readdir(FOLDER)).filter((name) => name.endsWith(".yaml"));

function read(file: string): Manifest {
  const program = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
  return JSON.parse(runLinter("python", "-c", program, join(FOLDER, file)).said) as Manifest;
}

function templateOf({ spec }: Manifest): Template {
  return spec?.template ?? spec!.jobTemplate!.spec.template;
}

function validate(version: string, ...paths: string[]): { status: number | null; said: string } {
  return runLinter("python", "-m", "kubernetes_validate", "-k", version, "--strict", "--quiet", ...paths);
}

test.each(VERSIONS)("Kubernetes %s takes each file, and would take no other", async (version) => {
  expect(validate(version, ...files.map((file) => join(FOLDER, file)))).toEqual({ status: 0, said: "" });
  const broken = join(await temporaryFolder(), "cronjob.yaml");
  const cronjob = await readFile(join(FOLDER, "cronjob.yaml"), "utf8");
  await writeFile(broken, cronjob.replace("readOnlyRootFilesystem", "readOnlyRootFileSystem"));
  expect(validate(version, broken).said).toContain("readOnlyRootFileSystem");
});

describe.each(["cronjob.yaml", "restore-job.yaml"])("%s", (file) => {
  const manifest = read(file);
  const { metadata, spec } = templateOf(manifest);
  const [container] = spec.containers;

  test("is within the Pod Security Standard 'restricted', and has no way to the cluster's API", () => {
    expect(spec).toMatchObject({
      serviceAccountName: "blockhaul",
      automountServiceAccountToken: false,
      securityContext: { runAsNonRoot: true, runAsUser: 10_001, seccompProfile: { type: "RuntimeDefault" } },
    });
    expect(container.securityContext).toEqual({
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ["ALL"] },
    });
    expect(container.resources.limits).toHaveProperty("memory");
    expect(spec.volumes.filter((volume) => "hostPath" in volume)).toEqual([]);
  });

  test("starts the program that is built here, with arguments that it takes", async () => {
    const { version } = JSON.parse(await readFile(join(ROOT, "package.json"), "utf8")) as { version: string };
    expect(container.image).toMatch(new RegExp(`/blockhaul:${version}$`));
    await parseWords(container.args);
  });

  test("names what the other files make, and mounts what it declares", () => {
    const made = files.map((one) => read(one)).map(({ kind, metadata: { name } }) => `${kind} ${name}`);
    expect(made).toContain(`ServiceAccount ${spec.serviceAccountName}`);
    expect(made).toContain(`Secret ${container.envFrom[0]!.secretRef.name}`);
    const text = JSON.stringify(spec.volumes);
    for (const [, name] of text.matchAll(/"configMap":\{"name":"([^"]+)"/g))
      expect(made).toContain(`ConfigMap ${name}`);
    if (file === "cronjob.yaml") expect(text).toContain(`"claimName":"${read("cache.yaml").metadata.name}"`);
    expect(container.volumeMounts.map(({ name }) => name).sort()).toEqual(
      spec.volumes.map(({ name }) => name).sort(),
    );
    const writable = container.volumeMounts.map(({ mountPath }) => mountPath);
    expect(writable, "its cache has a place").toContain(file === "cronjob.yaml" ? "/cache" : "/tmp");
  });

  test("the network policy is of its pods", () => {
    const { podSelector } = read("networkpolicy.yaml").spec!;
    expect(metadata.labels).toMatchObject(podSelector!.matchLabels);
  });
});

test("only storage that was out of reach is tried again", () => {
  const { podFailurePolicy, template } = read("cronjob.yaml").spec!.jobTemplate!.spec;
  expect(podFailurePolicy).toMatchObject({
    rules: [
      { action: "Ignore" },
      { action: "FailJob", onExitCodes: { operator: "NotIn", values: [EXIT_CODE.unavailable] } },
    ],
  });
  expect(template.spec.restartPolicy, "or such a policy has no effect").toBe("Never");
});

test("the policy lets through what the settings need", () => {
  const ports = read("networkpolicy.yaml").spec!.egress!.flatMap(({ ports }) =>
    ports.map(({ port }) => port),
  );
  const settings = read("configmap.yaml").data!["blockhaul.yaml"]!;
  for (const [, port] of settings.matchAll(/nbds?:\/\/[^:/]+:(\d+)/g)) expect(ports).toContain(Number(port));
  expect(ports).toContain(443);
});

test("the README has a line for each file", async () => {
  const readme = await readFile(join(FOLDER, "README.md"), "utf8");
  for (const file of files) expect(readme).toContain(`| \`${file}\``);
});
