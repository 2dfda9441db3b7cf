import { protocolError } from "./wire.ts";

/** A server that answers one read in more scattered pieces than this wants to use up our memory. */
const PIECES_MAX = 4096;

/**
 * Which bytes of one read have come. Chunks may come in any order but never twice (proto.md, NBD_CMD_READ), and
 * only bytes that came count as read.
 */
export class Coverage {
  /** Starts and ends of what has come, sorted, not touching: [start, end, start, end, …]. */
  readonly #edges: number[] = [];

  /** @throws AppError E_NBD_PROTOCOL when some of it has come before, or in too many pieces. */
  add(start: number, end: number): void {
    const edges = this.#edges;
    let at = edges.length; // chunks mostly come in order
    while (at > 0 && edges[at - 2]! >= start) at -= 2;
    const [before, after] = [edges[at - 1], edges[at]];
    if ((before !== undefined && before > start) || (after !== undefined && after < end)) {
      throw protocolError("NBD server sent the same bytes twice in one reply");
    }
    const [joinsBefore, joinsAfter] = [before === start, after === end];
    if (joinsBefore && joinsAfter) edges.splice(at - 1, 2);
    else if (joinsBefore) edges[at - 1] = end;
    else if (joinsAfter) edges[at] = start;
    else edges.splice(at, 0, start, end);
    if (edges.length > 2 * PIECES_MAX) throw protocolError("NBD server cuts a reply into too many pieces");
  }

  /** True when exactly these bytes have come. */
  isWhole(start: number, end: number): boolean {
    return this.#edges.length === 2 && this.#edges[0] === start && this.#edges[1] === end;
  }
}
