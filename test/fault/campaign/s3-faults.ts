/**
 * What may become of a request. "before": the server never hears of it; "after": the server has done it, and the
 * answer is lost.
 *
 * - `delay`            up to 0.8 s
 * - `stall`            nothing for 2 to 6 s, then the connection is reset
 * - `reset before`, `reset after`
 * - `cut request`      half of its body arrives
 * - `cut answer`       half of its body arrives
 * - `refuse before`, `refuse after`  500, 503 SlowDown or 400 RequestTimeout
 * - `twice`            the server gets it twice; the second answer counts
 * - `damage request`   one bit of the body: the server must refuse it by its checksum
 * - `damage answer`    one bit of an object's body: our own digests must catch it
 * - `clock`            from then on the Date of every answer is off
 * - `kill before`, `kill after`  the program is killed right then
 */
export const S3_FAULTS = [
  "delay",
  "stall",
  "reset before",
  "reset after",
  "cut request",
  "cut answer",
  "refuse before",
  "refuse after",
  "twice",
  "damage request",
  "damage answer",
  "clock",
  "kill before",
  "kill after",
] as const;
export type S3FaultKind = (typeof S3_FAULTS)[number];

export interface S3Rule {
  readonly kind: S3FaultKind;
  /** Name of a class of requests. */
  readonly on: string;
  /** Which request of the class; 0 is the first. */
  readonly nth: number;
  /** From then on every so-many-th one. */
  readonly every: number | undefined;
  /** 0 to 999,999: how long, which bit, which answer. */
  readonly value: number;
}

interface RequestClass {
  readonly name: string;
  /** Matched against "GET /bucket/prefix/key?query". */
  readonly matches: RegExp;
  /** False for faults that such requests cannot have. */
  readonly fits: (kind: S3FaultKind) => boolean;
  /** True for requests that runs make which store no data. */
  readonly ofReaders: boolean;
}

const BODILESS: readonly S3FaultKind[] = ["damage request", "cut request"];
const needsNoBody = (kind: S3FaultKind): boolean => !BODILESS.includes(kind) && kind !== "damage answer";
const sendsBody = (kind: S3FaultKind): boolean => kind !== "damage answer";
/** Lists have no checksum anywhere, so damage to them cannot be noticed: only objects' bodies are damaged. */
const givesObject = (kind: S3FaultKind): boolean => !BODILESS.includes(kind);

/** Query parameters that make a GET something else than that of an object. */
const OBJECT = String.raw`GET /[^/?]+/[^?]+(?:\?x-id=GetObject)?$`;

export const REQUEST_CLASSES: readonly RequestClass[] = [
  { name: "any", matches: /./, fits: needsNoBody, ofReaders: true },
  { name: "get", matches: new RegExp(OBJECT), fits: givesObject, ofReaders: true },
  {
    name: "get pack",
    matches: /^GET .*\/packs\/[^?]+(?:\?x-id=GetObject)?$/,
    fits: givesObject,
    ofReaders: true,
  },
  {
    name: "get layer",
    matches: /^GET .*\/layers\/[^?]+(?:\?x-id=GetObject)?$/,
    fits: givesObject,
    ofReaders: true,
  },
  {
    name: "get manifest",
    matches: /^GET .*\/generations\/[^?]+(?:\?x-id=GetObject)?$/,
    fits: givesObject,
    ofReaders: true,
  },
  { name: "list", matches: /^GET .*list-type=/, fits: needsNoBody, ofReaders: true },
  { name: "put", matches: /^PUT (?!.*partNumber)/, fits: sendsBody, ofReaders: true },
  { name: "put manifest", matches: /^PUT .*\/generations\//, fits: sendsBody, ofReaders: false },
  { name: "put layer", matches: /^PUT .*\/layers\//, fits: sendsBody, ofReaders: false },
  { name: "put index", matches: /^PUT .*\/index\//, fits: sendsBody, ofReaders: false },
  { name: "put lease", matches: /^PUT .*\/leases\//, fits: sendsBody, ofReaders: false },
  { name: "part", matches: /^PUT .*partNumber=/, fits: sendsBody, ofReaders: false },
  { name: "begin upload", matches: /^POST .*[?&]uploads/, fits: needsNoBody, ofReaders: false },
  { name: "complete upload", matches: /^POST .*[?&]uploadId=/, fits: sendsBody, ofReaders: false },
  { name: "delete", matches: /^(?:DELETE |POST [^?]*\?(?:.*&)?delete)/, fits: needsNoBody, ofReaders: true },
];

/** Which rules strike which request, and how often they did. */
export class S3Rules {
  readonly #rules: { readonly rule: S3Rule; readonly matches: RegExp; seen: number }[];

  constructor(rules: readonly S3Rule[]) {
    this.#rules = rules.map((rule) => ({
      rule,
      matches: REQUEST_CLASSES.find(({ name }) => name === rule.on)!.matches,
      seen: 0,
    }));
  }

  /** Counts a request. @returns the rule that strikes it, if any; the first of several. */
  next(line: string): S3Rule | undefined {
    const due = this.#rules.filter((one) => {
      if (!one.matches.test(line)) return false;
      const past = one.seen++ - one.rule.nth;
      return past === 0 || (past > 0 && one.rule.every !== undefined && past % one.rule.every === 0);
    });
    return due[0]?.rule;
  }
}
