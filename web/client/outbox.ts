/**
 * What waits to be published in one channel, in order. Knows no socket: {@link Outbox.next} says what may be sent now,
 * and is told what came of it.
 *
 * One is in flight at a time, so that the order of publishing is the order of acceptance even where one is tried again;
 * those marked `concurrent` wait for nobody. What was in flight when a connection dropped is sent again with the same
 * client message ID, and so has one effect.
 */

import { BarrageError } from "./error.js";
import { type Clock, PUBLISHES_WAITING_MAX, type Published } from "./options.js";
import type { Request } from "./frame.js";

export interface Item {
  readonly body: Extract<Request, { publish: unknown }>;
  readonly concurrent: boolean;
  /** Times that it was sent. */
  tries: number;
  inFlight: boolean;
  /** Not to be sent again before this; by the clock. */
  notBeforeMs: number;
}

interface Entry extends Item {
  readonly resolve: (published: Published) => void;
  readonly reject: (error: BarrageError) => void;
  readonly deadline: unknown;
}

export class Outbox {
  private entries: Entry[] = [];

  constructor(private readonly clock: Clock) {}

  get isEmpty(): boolean {
    return this.entries.length === 0;
  }

  /** Rejects with `QUEUE_FULL` at once, with `TIMEOUT` after `timeoutMs`. */
  add(body: Item["body"], timeoutMs: number, concurrent: boolean): Promise<Published> {
    return new Promise((resolve, reject) => {
      if (this.entries.length >= PUBLISHES_WAITING_MAX) {
        reject(new BarrageError("QUEUE_FULL", `${PUBLISHES_WAITING_MAX} publishes wait in this channel`, true));
        return;
      }
      const deadline = this.clock.setTimeout(() => {
        this.fail(entry, new BarrageError("TIMEOUT", "not answered in time: whether it had an effect is not known", true));
      }, timeoutMs);
      const entry: Entry = { body, concurrent, tries: 0, inFlight: false, notBeforeMs: 0, resolve, reject, deadline };
      this.entries.push(entry);
    });
  }

  /** What may be sent now; the caller sets `inFlight`. */
  next(): Item[] {
    const now = this.clock.now();
    const first = this.entries.find((entry) => !entry.concurrent);
    return this.entries.filter((e) => !e.inFlight && e.notBeforeMs <= now && (e.concurrent || e === first));
  }

  succeed(item: Item, id: string): void {
    const entry = this.take(item);
    entry?.resolve({ id, clientMessageId: item.body.publish.clientMessageId });
  }

  fail(item: Item, error: BarrageError): void {
    this.take(item)?.reject(error);
  }

  failAll(error: BarrageError): void {
    for (const entry of [...this.entries]) this.fail(entry, error);
  }

  /** The connection ended for a frame that may be one of these: what is in flight is not sent again. */
  failInFlight(error: BarrageError): void {
    for (const entry of this.entries.filter(({ inFlight }) => inFlight)) this.fail(entry, error);
  }

  /** The connection dropped: what was in flight has no answer, and goes again. */
  interrupted(): void {
    for (const entry of this.entries) {
      entry.inFlight = false;
      entry.notBeforeMs = 0;
    }
  }

  private take(item: Item): Entry | undefined {
    const entry = this.entries.find((e) => e === item);
    if (entry) {
      this.entries = this.entries.filter((e) => e !== entry);
      this.clock.clearTimeout(entry.deadline);
    }
    return entry;
  }
}
