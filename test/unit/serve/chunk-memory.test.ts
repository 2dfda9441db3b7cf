import { expect, test } from "vitest";
import { ChunkMemory, type Cell } from "../../../src/serve/chunk-memory.ts";
import { seeded } from "../../support/seeded.ts";

const SIZE = 64;

/** Fills cells with a number, as a thread would, and keeps each under its key. */
async function fill(memory: ChunkMemory, contents: readonly number[]): Promise<readonly Cell[]> {
  const cells = await memory.take(contents.length);
  cells.forEach((cell, index) => {
    memory.room.fill(contents[index]!, cell.at, cell.at + SIZE);
    memory.keep(`${contents[index]}`, cell, SIZE);
  });
  return cells;
}

function holds({ bytes }: Cell, content: number): boolean {
  return bytes.length === SIZE && bytes.every((byte) => byte === content);
}

test("what is lent stays as it is until it is given back, what is handed out as long as the turn; memory is bounded", async () => {
  for (let seed = 1; seed <= 60; seed++) {
    const random = seeded(seed);
    const [kept, arriving, lent] = [1 + random(6), 1 + random(4), 1 + random(4)];
    const memory = new ChunkMemory({ chunkSize: SIZE, kept, arriving, lent });
    const borrowed: { content: number; chunk: Cell; giveBack: () => void }[] = [];
    for (let step = 0; step < 80; step++) {
      const contents = Array.from({ length: 1 + random(arriving) }, () => random(20));
      const cells = await fill(memory, [...new Set(contents)]);
      [...new Set(contents)].forEach((content, index) => {
        const chunk = cells[index]!;
        expect(holds(chunk, content), `seed ${seed}, step ${step}`).toBe(true); // even when it was driven out at once
        const giveBack = random(2) === 0 ? memory.lend(chunk) : undefined;
        if (giveBack !== undefined) borrowed.push({ content, chunk, giveBack });
      });
      const known = random(20);
      const found = memory.get(`${known}`);
      if (found !== undefined) expect(holds(found, known), `seed ${seed}, step ${step}`).toBe(true);
      for (const { chunk, content } of borrowed)
        expect(holds(chunk, content), `seed ${seed}, step ${step}: lent`).toBe(true);
      expect(new Set(borrowed.map(({ chunk }) => chunk)).size).toBeLessThanOrEqual(lent);
      while (borrowed.length > 0 && random(3) > 0) borrowed.splice(random(borrowed.length), 1)[0]!.giveBack();
      if (random(2) === 0) await new Promise(setImmediate);
    }
    const keys = Array.from({ length: 20 }, (_, content) => memory.get(`${content}`));
    expect(keys.filter((one) => one !== undefined).length).toBeLessThanOrEqual(kept);
    expect(memory.room.length).toBe((kept + arriving + lent) * SIZE);
  }
});

test("one cell may be kept under several keys, and comes free with the last", async () => {
  const memory = new ChunkMemory({ chunkSize: SIZE, kept: 2, arriving: 1, lent: 1 });
  const [cell] = await memory.take(1);
  memory.room.fill(7, cell!.at, cell!.at + SIZE);
  memory.keep("a", cell!, SIZE);
  memory.keep("b", cell!, 10);
  expect(memory.get("a")).toBe(memory.get("b"));
  await fill(memory, [1]); // drives out "a"
  expect(memory.get("a")).toBeUndefined();
  expect(memory.get("b")?.bytes.every((byte) => byte === 7)).toBe(true);
  for (const content of [2, 3, 4, 5]) await fill(memory, [content]);
  expect(memory.get("b")).toBeUndefined();
  expect(holds(memory.get("5")!, 5)).toBe(true);
});

test("what is not filled after all is given back", async () => {
  const memory = new ChunkMemory({ chunkSize: SIZE, kept: 1, arriving: 2, lent: 1 });
  for (let round = 0; round < 5; round++) {
    const cells = await memory.take(2);
    for (const cell of cells) memory.give(cell);
  }
  await fill(memory, [1, 2]);
  expect(holds(memory.get("2")!, 2)).toBe(true);
});
