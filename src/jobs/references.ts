/** A field and what is wrong with it. */
export interface Finding {
  readonly path: readonly PropertyKey[];
  readonly message: string;
}

/**
 * What a job or a source names and the file does not have, and jobs that would undo each other's work. Looks at the document as it was
 * written, so that it finds its problems beside those of the schema.
 */
export function checkReferences(file: unknown): Finding[] {
  const { repositories, sources, jobs, queues } = { ...fieldsOf(file) };
  const findings: Finding[] = [];
  // the schema does not see this name, because it is that of no field of an object
  for (const [map, names] of Object.entries({ repositories, sources, jobs, queues })) {
    if (has(names, "__proto__")) findings.push({ path: [map, "__proto__"], message: "not a name" });
  }
  for (const [name, source] of Object.entries(fieldsOf(sources))) {
    const { queue } = { ...fieldsOf(source) };
    if (typeof queue !== "string" || has(queues, queue)) continue;
    const message = `there is no queue ${queue}; ${listed(queues, "queues")}`;
    findings.push({ path: ["sources", name, "queue"], message });
  }
  const keepers = new Map<string, string>();
  for (const [name, job] of Object.entries(fieldsOf(jobs))) {
    const { repository, sources: named, retention } = { ...fieldsOf(job) };
    const path = ["jobs", name];
    if (typeof repository === "string" && !has(repositories, repository)) {
      const message = `there is no repository ${repository}; ${listed(repositories, "repositories")}`;
      findings.push({ path: [...path, "repository"], message });
    }
    const list: unknown[] = Array.isArray(named) ? named : [];
    for (const [index, source] of list.entries()) {
      if (typeof source !== "string") continue;
      const at = [...path, "sources", index];
      if (!has(sources, source)) {
        findings.push({ path: at, message: `there is no source ${source}; ${listed(sources, "sources")}` });
      } else if (list.indexOf(source) !== index) {
        findings.push({ path: at, message: `source ${source} is named twice` });
      } else if (retention !== undefined) {
        const both = JSON.stringify([repository, source]);
        const other = keepers.get(both);
        if (other !== undefined) {
          const message = `job ${other} has retention rules for ${source} in the same repository: each would forget what the other keeps`;
          findings.push({ path: at, message });
        }
        keepers.set(both, name);
      }
    }
  }
  return findings;
}

function fieldsOf(value: unknown): Readonly<Record<string, unknown>> {
  const isMap = typeof value === "object" && value !== null && !Array.isArray(value);
  return isMap ? (value as Record<string, unknown>) : {};
}

function has(map: unknown, name: string): boolean {
  return Object.hasOwn(fieldsOf(map), name);
}

function listed(map: unknown, what: string): string {
  const names = Object.keys(fieldsOf(map));
  return names.length === 0 ? `the file has no ${what}` : `there are ${names.slice(0, 8).join(", ")}`;
}
