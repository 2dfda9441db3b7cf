import { expect, test } from "vitest";
import { SerialConsole } from "../../../src/drill/console.ts";

test("what is waited for is found wherever it is cut, and whatever colours it", async () => {
  const said = "\u001bc\u001b[2J[  OK  ] Started \u001b[0;1;39mgetty\u001b[0m on ttyS0.\r\n\r\nweb login: ";
  for (let cut = 0; cut <= said.length; cut++) {
    const console = new SerialConsole();
    const found = Promise.all([console.said(/Started getty on/), console.said(/login: $/m)]);
    console.take(said.slice(0, cut));
    console.take(said.slice(cut));
    expect(await found).toEqual(["Started getty on", "login: "]);
  }
});

test("its end is kept, without control characters; no more than a bound of it", async () => {
  const console = new SerialConsole();
  for (let line = 0; line < 100_000; line++)
    console.take(`line ${line}\u001b[31m\u0007\u001b]0;title\u0007\r\n\r\n`);
  expect(console.tail(2)).toBe("line 99998\nline 99999");
  expect(console.tail(1_000_000).length).toBeLessThanOrEqual(64 * 1024);
  const late = console.said(/line 0/);
  console.take("line 1\r\n");
  expect(await Promise.race([late, Promise.resolve("not said since")])).toBe("not said since");
});
