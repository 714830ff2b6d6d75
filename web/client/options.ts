/** What a {@link Client} is made of and says: options, states, events. */

import type { BackoffOptions } from "./backoff.js";
import type { BarrageError } from "./error.js";
import type { Connected, Gap, Goodbye, Message, Online, Refused, Style, Subscribed } from "./frame.js";
import type { Browser } from "./origin.js";

/** Where to connect, and what the server advises about connecting again. */
export interface Endpoint {
  /** `ws://` or `wss://`. Carries no token: that stands in the first frame. */
  url: string;
  backoff?: Partial<BackoffOptions>;
}

/**
 * A token, or what gets one. A function is asked before the first connection (`connect`), in time before the token
 * lapses (`expiring`), and when the server says that it has lapsed (`expired`). An empty token: a guest.
 */
export type TokenSource = string | ((why: "connect" | "expiring" | "expired") => string | Promise<string>);

/** The part of the browsers' WebSocket that is used: theirs, Node's from 22 on, or that of the package `ws`. */
export interface WebSocketLike {
  readonly readyState: number;
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}

export type WebSocketConstructor = new (url: string, protocols: string[]) => WebSocketLike;

/** Time, for tests to move. */
export interface Clock {
  now(): number;
  setTimeout(run: () => void, ms: number): unknown;
  clearTimeout(timer: unknown): void;
}

export interface ClientOptions {
  /** One address, several (tried in turn), or a function that is asked before every attempt. */
  url: string | string[] | (() => Endpoint | Promise<Endpoint>);
  token?: TokenSource;
  /** Names this device among the user's; the token's own claim has precedence. */
  device?: string;
  /** The name a guest asks to be shown under. */
  name?: string;
  backoff?: Partial<BackoffOptions>;
  /** Ping at least this often, so that online numbers are fresh; the server's `heartbeatS` is the longest. Milliseconds. */
  pingEveryMs?: number;
  /** Where no `WebSocket` is global (Node before 22). */
  WebSocket?: WebSocketConstructor;
  clock?: Clock;
  /** `[0, 1)`, for the jitter. */
  random?: () => number;
  /** Where this runs, for tests; default: this browser, if it is one. */
  browser?: Browser;
}

/**
 * `idle` before `connect()`; `connecting`; `connected`; `waiting` to connect again; `closed` by `close()` or for good by
 * the server (then with `error`).
 */
export type State =
  | { name: "idle" }
  | { name: "connecting"; attempt: number }
  | { name: "connected" }
  | { name: "waiting"; retryAtMs: number; error?: BarrageError }
  | { name: "closed"; error?: BarrageError };

export interface SubscribeOptions {
  /** This many recent messages first, at most 200. */
  history?: number;
  /** Go on from here, a position kept from an earlier run. */
  resume?: Subscribed["position"];
}

export interface PublishOptions {
  /** text, image, gift, like, custom, or the platform's own; default `text`. */
  type?: string;
  style?: Style;
  /** Default: a random one. The same one sent again within five minutes has one effect. */
  clientMessageId?: string;
  /** Give up after this long, tries included; default {@link PUBLISH_TIMEOUT_MS}. At most five minutes: see there. */
  timeoutMs?: number;
  /** Do not wait for the channel's earlier publishes to be answered. Their order is then not promised. */
  concurrent?: boolean;
}

/** What came of a publish: the bus has it durably. */
export interface Published {
  id: string;
  clientMessageId: string;
}

export interface ClientEvents {
  state: State;
  connected: Connected;
  /** In order on each lane of each channel, each once. */
  message: Message;
  gap: Gap;
  /** Also after each reconnection, and where the platform subscribed the session. */
  subscribed: Subscribed;
  /**
   * The platform took the session out of the channel, or it could not be subscribed again. With an `error` of code
   * `BANNED` and its `retryAfterMs`, the client subscribes again by itself when the ban ends.
   */
  unsubscribed: { channel: string; error?: BarrageError };
  /** Sessions in a channel that this one is in: with `subscribed` and with each heartbeat. */
  online: Online;
  /** The token was replaced; when the new one lapses. */
  refreshed: { expiresAtMs: number };
  goodbye: Goodbye;
  /** A message that `publish` resolved for had no effect after all. */
  refused: Refused;
  /** What no request's promise tells: a token that could not be got, a frame that made no sense. */
  error: BarrageError;
}

/** A publish is given up after this long by default, milliseconds: a person has stopped waiting. */
export const PUBLISH_TIMEOUT_MS = 60_000;

/** The server remembers client message IDs for five minutes: beyond, a retry could have a second effect. */
export const PUBLISH_TIMEOUT_MS_MAX = 300_000;

/** Publishes that wait in one channel; one more is refused with `QUEUE_FULL`. An hour's typing, or a defect. */
export const PUBLISHES_WAITING_MAX = 100;

/**
 * A request that has no answer after this long is sent again, or the connection counts as dead. Milliseconds. Longer
 * than the ten seconds that a room's new owner is given to answer for it.
 */
export const REQUEST_TIMEOUT_MS = 15_000;

/** From opening the socket to `Connected`; then the next attempt. Milliseconds. */
export const CONNECT_TIMEOUT_MS = 10_000;

/** A connection that stood this long was a good one: the next backoff begins anew. Milliseconds. */
export const STABLE_AFTER_MS = 5_000;
