/**
 * The token of a session: got before the first connection, replaced in time before it lapses and when the server says
 * that it has.
 */

import { BarrageError, asError, errorOf } from "./error.js";
import type { Request } from "./frame.js";
import type { Clock, TokenSource } from "./options.js";
import type { Answer } from "./requests.js";

/** Part of a token's remaining life that is left when it is refreshed, at most {@link REFRESH_AHEAD_MS_MAX}. */
const REFRESH_AHEAD = 0.2;
const REFRESH_AHEAD_MS_MAX = 60_000;
/** Between two tries to get a new token, milliseconds. */
const REFRESH_AGAIN_MS = 5_000;
/** The longest that `setTimeout` can wait, milliseconds; beyond, it fires at once. */
export const TIMER_MS_MAX = 2 ** 31 - 1;

/** What a token asks of its session. */
interface Session {
  serverNow(): number;
  request(body: Request, answered: (answer: Answer) => void): void;
  refreshed(expiresAtMs: number): void;
  failed(error: BarrageError): void;
}

export class Token {
  private token: string | undefined;
  private lapsed = false;
  private refreshing = false;
  private timer: unknown;
  /** Counts connections: what belongs to an earlier one is too late. */
  private connection = 0;

  constructor(
    private readonly source: TokenSource | undefined,
    private readonly clock: Clock,
    private readonly session: Session,
  ) {}

  /** Whether another one can be had. */
  get isRenewable(): boolean {
    return typeof this.source === "function";
  }

  /** The one to connect with. */
  async get(): Promise<string> {
    if (this.token === undefined || this.lapsed) {
      const { connection } = this;
      const token = await this.ask(this.lapsed ? "expired" : "connect");
      if (connection !== this.connection) return token;
      this.token = token;
      this.lapsed = false;
    }
    return this.token;
  }

  /** The server has closed for a lapsed token: another one is got before the next connection. */
  lapse(): void {
    this.lapsed = true;
  }

  /** The connection ends. */
  stop(): void {
    this.connection += 1;
    this.refreshing = false;
    this.clock.clearTimeout(this.timer);
  }

  /** The server says when the token lapses, milliseconds since 1970; 0: never. */
  schedule(expiresAtMs: number): void {
    this.clock.clearTimeout(this.timer);
    if (expiresAtMs === 0 || !this.isRenewable) return;
    const lifeMs = Math.max(0, expiresAtMs - this.session.serverNow());
    const waitMs = lifeMs - Math.min(lifeMs * REFRESH_AHEAD, REFRESH_AHEAD_MS_MAX);
    this.timer = this.clock.setTimeout(() => {
      if (waitMs > TIMER_MS_MAX) this.schedule(expiresAtMs);
      else void this.refresh("expiring");
    }, Math.min(waitMs, TIMER_MS_MAX));
  }

  /** If `error` is a lapsed token that can be replaced: does that, and the request is worth trying again. */
  mend(error: BarrageError): boolean {
    if (error.code !== "TOKEN_EXPIRED" || !this.isRenewable) return false;
    void this.refresh("expired");
    return true;
  }

  private async ask(why: "connect" | "expiring" | "expired"): Promise<string> {
    return typeof this.source === "function" ? await this.source(why) : (this.source ?? "");
  }

  private async refresh(why: "expiring" | "expired"): Promise<void> {
    if (this.refreshing) return;
    this.refreshing = true;
    const { connection } = this;
    const again = (error: BarrageError) => {
      this.refreshing = false;
      this.session.failed(error);
      this.timer = this.clock.setTimeout(() => void this.refresh(why), REFRESH_AGAIN_MS);
    };
    try {
      const token = await this.ask(why);
      if (connection !== this.connection) return;
      this.token = token;
      this.session.request({ refresh: { token } }, (answer) => {
        if (connection !== this.connection) return;
        if ("timeout" in answer) {
          again(new BarrageError("TIMEOUT", "no answer to refreshing the token", true));
        } else if (answer.body.kind === "refreshed") {
          this.refreshing = false;
          this.schedule(answer.body.expiresAtMs);
          this.session.refreshed(answer.body.expiresAtMs);
        } else if (answer.body.kind === "error") {
          again(errorOf(answer.body.error));
        }
      });
    } catch (thrown) {
      if (connection === this.connection) again(asError(thrown));
    }
  }
}
