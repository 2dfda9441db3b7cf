// A runtime client as small as can be, for where aws-lambda-ric is not built: asks the Runtime API for the next invocation, calls the
// handler, posts what it gave. argv: folder, and "module.handler".
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, name] = process.argv.slice(2);
const [module, exported] = name.split(".");
const { [exported]: handler } = await import(pathToFileURL(join(folder, `${module}.mjs`)).href);
const api = `http://${process.env.AWS_LAMBDA_RUNTIME_API}/2018-06-01/runtime/invocation`;
for (;;) {
  const next = await fetch(`${api}/next`);
  const id = next.headers.get("lambda-runtime-aws-request-id");
  const deadline = Number(next.headers.get("lambda-runtime-deadline-ms"));
  const context = {
    functionName: process.env.AWS_LAMBDA_FUNCTION_NAME,
    awsRequestId: id,
    getRemainingTimeInMillis: () => deadline - Date.now(),
  };
  try {
    const result = await handler(await next.json(), context);
    await fetch(`${api}/${id}/response`, { method: "POST", body: JSON.stringify(result ?? null) });
  } catch (error) {
    const body = JSON.stringify({ errorType: error.name, errorMessage: error.message });
    await fetch(`${api}/${id}/error`, { method: "POST", body });
  }
}
