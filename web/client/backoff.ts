/** When to connect again: exponential, jittered so that a server's restart is not answered by everyone at once. */

export interface BackoffOptions {
  /** Before the first retry, milliseconds. */
  baseMs: number;
  /** Never longer than this, milliseconds. */
  maxMs: number;
  /** Each wait is this many times the one before. */
  factor: number;
  /** 0–1: the part of the wait that is random. The wait lies in `[1 - jitter, 1] ×` the exponential one. */
  jitter: number;
}

export const BACKOFF: BackoffOptions = { baseMs: 500, maxMs: 30_000, factor: 1.8, jitter: 0.5 };

export class Backoff {
  private attempts = 0;

  constructor(
    readonly options: BackoffOptions,
    private readonly random: () => number,
  ) {}

  /** Milliseconds to wait before the next attempt; at least `floorMs`, which a server asked for. */
  next(floorMs = 0): number {
    const { baseMs, maxMs, factor, jitter } = this.options;
    const full = Math.min(maxMs, baseMs * factor ** this.attempts);
    this.attempts += 1;
    const wait = full * (1 - jitter * this.random());
    // What the server asked for is the least; the jitter on top keeps those apart who were told the same.
    return floorMs > 0 ? floorMs + Math.min(wait, floorMs * jitter) : wait;
  }

  /** A connection stood: the next wait is a first one again. */
  reset(): void {
    this.attempts = 0;
  }
}
