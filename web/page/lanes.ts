/**
 * Where a bullet flies without touching another: lanes of one line's height. Knows no element and no clock.
 *
 * A bullet crosses `width + its own width` at a speed of its own. It may enter a lane when the one before it has come
 * in wholly, with a gap, and it does not catch up with that one before its tail has left on the other side.
 */

export interface Flight {
  /** Milliseconds; by whatever clock, always the same one. */
  startMs: number;
  /** Pixels. */
  width: number;
  /** From entering to having left, milliseconds. */
  durationMs: number;
}

/** Pixels between two bullets in one lane. */
const GAP_PX = 32;

export class FlyingLanes {
  private last: (Flight | undefined)[] = [];

  /** The first of `lanes` lanes that takes `flight` over a picture `stagePx` wide; `undefined`: none. */
  place(flight: Flight, lanes: number, stagePx: number): number | undefined {
    for (let lane = 0; lane < lanes; lane += 1) {
      const before = this.last[lane];
      if (!before || isClear(before, flight, stagePx)) {
        this.last[lane] = flight;
        return lane;
      }
    }
    return undefined;
  }

  clear(): void {
    this.last = [];
  }
}

function isClear(before: Flight, next: Flight, stagePx: number): boolean {
  const speed = (f: Flight) => (stagePx + f.width) / f.durationMs;
  const cameInMs = before.startMs + (before.width + GAP_PX) / speed(before);
  const goneMs = before.startMs + before.durationMs;
  const reachesEndMs = next.startMs + stagePx / speed(next);
  return next.startMs >= cameInMs && (next.startMs >= goneMs || reachesEndMs >= goneMs);
}

/** Lanes whose bullets stand still, at the top or the bottom: one each until its time is over. */
export class StandingLanes {
  private until: number[] = [];

  place(nowMs: number, forMs: number, lanes: number): number | undefined {
    for (let lane = 0; lane < lanes; lane += 1) {
      if ((this.until[lane] ?? 0) <= nowMs) {
        this.until[lane] = nowMs + forMs;
        return lane;
      }
    }
    return undefined;
  }

  clear(): void {
    this.until = [];
  }
}
