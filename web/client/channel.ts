/** A channel that is wanted: how far it was seen, and whether the server has it on this connection. */

import { Cursor } from "./cursor.js";
import type { BarrageError } from "./error.js";
import type { Subscribed } from "./frame.js";
import type { SubscribeOptions } from "./options.js";

export interface Channel {
  readonly name: string;
  readonly history: number;
  readonly cursor: Cursor;
  /** The server has said `Subscribed` on this connection. */
  live: Subscribed | undefined;
  /** The user is banned there, and the channel is asked for again when the ban ends. */
  banned: boolean;
  tries: number;
  timer: unknown;
  settled: Promise<Subscribed>;
  resolve: (subscribed: Subscribed) => void;
  reject: (error: BarrageError) => void;
}

/** The promise of a subscription that is to come. */
export function settling(): Pick<Channel, "settled" | "resolve" | "reject"> {
  const { promise, resolve, reject } = deferred<Subscribed>();
  return { settled: promise, resolve, reject };
}

export function newChannel(name: string, options: SubscribeOptions): Channel {
  return {
    name,
    history: options.history ?? 0,
    cursor: new Cursor(options.resume && { ...options.resume }),
    live: undefined,
    banned: false,
    tries: 0,
    timer: undefined,
    ...settling(),
  };
}

export interface Deferred<T> {
  promise: Promise<T>;
  resolve: (value: T) => void;
  reject: (error: BarrageError) => void;
}

export function deferred<T>(): Deferred<T> {
  let resolve!: (value: T) => void;
  let reject!: (error: BarrageError) => void;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  promise.catch(() => {}); // whoever does not wait for it hears of it by an event
  return { promise, resolve, reject };
}
