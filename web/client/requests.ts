/** Requests of one connection that have no answer yet. Each is answered once: by a frame, by its time, or by the end. */

import { type Body, type Request, encode } from "./frame.js";
import { type Clock, REQUEST_TIMEOUT_MS } from "./options.js";

export type Answer = { body: Body } | { timeout: true };

interface Pending {
  readonly answered: (answer: Answer) => void;
  readonly timer: unknown;
}

export class Requests {
  private readonly pending = new Map<number, Pending>();
  private last = 0;

  constructor(
    private readonly clock: Clock,
    private readonly send: (text: string) => void,
  ) {}

  /** Sends a request; `answered` is called once. */
  ask(body: Request, answered: (answer: Answer) => void): void {
    const id = (this.last = this.last >= 0xffff_ffff ? 1 : this.last + 1);
    const timer = this.clock.setTimeout(() => {
      this.pending.delete(id);
      answered({ timeout: true });
    }, REQUEST_TIMEOUT_MS);
    this.pending.set(id, { answered, timer });
    this.send(encode(id, body));
  }

  /** The answer to `request`, if that is pending. */
  answer(request: number, body: Body): void {
    const pending = this.pending.get(request);
    if (!pending) return;
    this.pending.delete(request);
    this.clock.clearTimeout(pending.timer);
    pending.answered({ body });
  }

  /** The connection ends: takes the requests that will have no answer. Each is to be called. */
  drop(): (() => void)[] {
    const unanswered = [...this.pending.values()];
    this.pending.clear();
    return unanswered.map(({ answered, timer }) => {
      this.clock.clearTimeout(timer);
      return () => {
        answered({ timeout: true });
      };
    });
  }
}
