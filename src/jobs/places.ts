import { isAlias, isMap, isScalar, isSeq, type Document, type LineCounter, type Node } from "yaml";

/** Where something stands in a file; both count from 1. */
export interface Place {
  readonly line: number;
  readonly column: number;
}

type Step = { readonly key: unknown; readonly value: unknown } | undefined;

/**
 * Where the value at a path of a document stands; the deepest part of the path that is there, when it is not.
 *
 * @param atKey of a field: its name rather than its value.
 */
export function placeOf(
  document: Document,
  lines: LineCounter,
  path: readonly PropertyKey[],
  atKey = false,
): Place {
  let node: unknown = document.contents;
  let found = node;
  for (const [index, segment] of path.entries()) {
    const next = step(document, node, segment);
    if (next === undefined) break;
    node = next.value;
    const named = next.key !== undefined && (!hasPlace(next.value) || (atKey && index === path.length - 1));
    // a map begins at its first field, a line below its name: the name is what people look for
    found = named || isMap(next.value) ? (next.key ?? next.value) : next.value;
  }
  const offset = hasPlace(found) ? found.range[0] : 0;
  const { line, col } = lines.linePos(offset);
  return { line: Math.max(line, 1), column: Math.max(col, 1) };
}

function step(document: Document, node: unknown, segment: PropertyKey): Step {
  const inside = isAlias(node) ? node.resolve(document) : node;
  if (isSeq(inside) && typeof segment === "number") {
    return segment < inside.items.length ? { key: undefined, value: inside.items[segment] } : undefined;
  }
  if (!isMap(inside)) return undefined;
  return inside.items.find(({ key }) => (isScalar(key) ? String(key.value) : undefined) === String(segment));
}

function hasPlace(node: unknown): node is Node & { range: [number, number, number] } {
  return typeof node === "object" && node !== null && "range" in node && Array.isArray(node.range);
}
