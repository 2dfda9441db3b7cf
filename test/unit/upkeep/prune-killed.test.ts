import { beforeEach, expect, test } from "vitest";
import { AppError } from "../../../src/errors.ts";
import { recordDamaged } from "../../../src/repository/damaged.ts";
import { decodeIndexObject } from "../../../src/repository/index-objects.ts";
import { generationKey } from "../../../src/repository/names.ts";
import { HookedStore } from "../../support/hooked-store.ts";
import { DAY, forgetThem, forward, runPrune, stopClock } from "../../support/prunes.ts";
import { diskOf, expectSame, newBackups, numbers } from "../backup/chunks.ts";

const never = new AbortController().signal;
type TestBackups = Awaited<ReturnType<typeof newBackups>>;

beforeEach(stopClock);

/** A repository in which a prune has something of everything to do. */
async function fullOfWork(): Promise<TestBackups> {
  const backups = await newBackups({ packChunks: 4 });
  const { repository, store } = backups;
  const { manifest: lost } = await backups.backup([diskOf(numbers(1, 9))], { source: "dead" });
  const pack = [...store.objects.keys()].find((key) => key.startsWith("packs/"))!;
  await recordDamaged(repository, pack.slice("packs/".length), [0], never);
  store.objects.delete(generationKey("dead", lost.generation));
  forward(2 * DAY);
  await runPrune(repository);
  const { manifest } = await backups.backup([diskOf(numbers(11, 30))]);
  await backups.backup([diskOf([11, 0, 40])], { source: "db" }); // one of those packs, and its own
  await backups.backup([diskOf(numbers(41, 45))], { full: true });
  await forgetThem(repository, "web", [manifest.generation]);
  await store.put("leases/old/019aa950-0000-7000-8000-000000000002", Buffer.from("dead"), never);
  forward(31 * DAY);
  return backups;
}

/** What is there, but for names that are new each time; and that it is what the generations need. */
function expectTidy(backups: TestBackups): void {
  const { repository, store } = backups;
  const keys = [...store.objects.keys()];
  const kinds = Object.groupBy(keys, (key) => key.split("/")[0]!);
  expect(Object.keys(kinds).sort()).toEqual(["generations", "index", "layers", "packs", "runs"]);
  expect(kinds["packs"]).toHaveLength(4); // one of the forgotten generation's five, one of db's, two of web's
  expect(kinds["layers"]).toHaveLength(2);
  expect(kinds["runs"]).toHaveLength(4);
  const listed = kinds["index"]!.flatMap((key) => [
    ...decodeIndexObject(repository, key, store.bytes(key)).map(({ pack }) => `packs/${pack}`),
  ]);
  expect([...new Set(listed)].sort()).toEqual(kinds["packs"]!.sort());
}

async function expectRestores(backups: TestBackups): Promise<void> {
  const [db, web] = await backups.generations();
  expectSame(await backups.restore(db!.disks[0]!), diskOf([11, 0, 40]).bytes);
  expectSame(await backups.restore(web!.disks[0]!), diskOf(numbers(41, 45)).bytes);
}

async function pruneToTheEnd(backups: TestBackups): Promise<void> {
  for (let time = 0; time < 4; time++) {
    await runPrune(backups.repository);
    forward(5 * DAY);
  }
  await runPrune(backups.repository);
}

test.each(["before it is done", "after it, the answer being lost"])(
  "a prune that dies at any request, %s, leaves nothing that the next does not make good",
  async (when) => {
    const backups = await fullOfWork();
    const { repository, store } = backups;
    const start = new Map(store.objects);
    const startedAt = Date.now();
    const dies = new AppError("unavailable", "E_STORE", "planned: the machine is off");
    let cut = 0;
    for (;;) {
      store.objects.clear();
      for (const [key, object] of start) store.objects.set(key, object);
      forward(startedAt - Date.now());
      let count = 0;
      const mayGo = (): void => {
        if (count > cut) throw dies;
      };
      const dying = new HookedStore(store, {
        before: () => {
          count++;
          if (when === "before it is done") mayGo();
          else if (count > cut + 1) throw dies;
        },
        after: mayGo,
      });
      const failure = await runPrune({ ...repository, store: dying }).then(
        () => undefined,
        (error: unknown) => error,
      );
      const whole = failure === undefined;
      if (!whole) expect(failure).toBe(dies);
      await expectRestores(backups);
      if (cut % 3 === 0 || whole) {
        forward(DAY);
        await pruneToTheEnd(backups);
        expectTidy(backups);
        await expectRestores(backups);
      }
      if (whole) break;
      cut++;
    }
    expect(cut).toBeGreaterThan(40);
  },
);
