/** Barrage's client library: see README.md beside it, and {@link Client}. */
export { BACKOFF, type BackoffOptions } from "./backoff.js";
export { Client } from "./client.js";
export type { ClientEvents, ClientOptions, Endpoint, PublishOptions, Published, State, SubscribeOptions, TokenSource } from "./options.js";
export { BarrageError, type ErrorCode, type ServerErrorCode } from "./error.js";
export type { Connected, Gap, GapReasons, Goodbye, Lane, Limits, Message, Online, Position, Refused, Sender, Style, Subscribed } from "./frame.js";
export { SUBPROTOCOL } from "./frame.js";
