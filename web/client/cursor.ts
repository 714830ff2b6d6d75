/**
 * How far one channel has been seen: what a resume says, and the guard against seeing a message twice.
 *
 * The server promises order on each lane. The guard is for the seam between two connections: a server may go on from the
 * normal lane's position on both lanes, and so send again what the high lane was ahead by.
 */

import type { Message, Position } from "./frame.js";

/** Offsets remembered for the guard: five times the longest history. The oldest is forgotten first. */
const SEEN_MAX = 1_000;

export class Cursor {
  private readonly seen = new Set<string>();

  constructor(private at: Position = { log: "", normal: 0n, high: 0n }) {}

  /** Where to go on from; `undefined` before the log is known. */
  get position(): Position | undefined {
    return this.at.log === "" ? undefined : { ...this.at };
  }

  /** Moves past `message`; false if it was seen before. */
  take({ offset, lane }: Pick<Message, "offset" | "lane">): boolean {
    if (offset === 0n) return true;
    const key = `${lane}${offset}`;
    if (this.seen.has(key)) return false;
    this.seen.add(key);
    if (this.seen.size > SEEN_MAX) {
      const [oldest] = this.seen;
      if (oldest !== undefined) this.seen.delete(oldest);
    }
    if (offset > this.at[lane]) this.at[lane] = offset;
    return true;
  }

  /** The server says that everything up to `to` was sent, or is told as a gap. In another log, offsets begin anew. */
  moveTo(to: Position): void {
    if (to.log !== this.at.log) {
      // Messages that came before the first `Subscribed` are of its log; of a log that was left nothing counts.
      if (this.at.log !== "") this.seen.clear();
      this.at = { ...to };
      return;
    }
    if (to.normal > this.at.normal) this.at.normal = to.normal;
    if (to.high > this.at.high) this.at.high = to.high;
  }
}
