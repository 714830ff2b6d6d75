/** Errors, the server's and this library's own, each with a code that a program can branch on. */

import type { WireError } from "./frame.js";

/** The server's codes: `proto::error::TABLE` says of each whose fault it is and whether to retry. */
export const SERVER_ERROR_CODES = [
  "NONE",
  "BAD_REQUEST",
  "UNAUTHENTICATED",
  "TOKEN_EXPIRED",
  "FORBIDDEN",
  "MUTED",
  "BANNED",
  "NOT_SUBSCRIBED",
  "TOO_LARGE",
  "TOO_FAST",
  "TOO_MANY_ROOMS",
  "TOO_MANY_CONNECTIONS",
  "TOO_SLOW",
  "IDLE",
  "KICKED",
  "REPLACED",
  "DRAINING",
  "UNAVAILABLE",
  "INTERNAL",
  "CONFLICT",
  "NOT_FOUND",
  "IN_PROGRESS",
  "OUTCOME_UNKNOWN",
] as const;

export type ServerErrorCode = (typeof SERVER_ERROR_CODES)[number];

/**
 * This library's own: `CLOSED` by `close()` or for good by the server; `TIMEOUT` no answer in time, tries included
 * (whether it had an effect is not known; the same client message ID asks safely); `QUEUE_FULL` too many publishes wait;
 * `UNREACHABLE` no address to connect to, or none answers.
 */
export type ErrorCode = ServerErrorCode | "CLOSED" | "TIMEOUT" | "QUEUE_FULL" | "UNREACHABLE";

/** What a request is rejected with, and what `error` events carry. */
export class BarrageError extends Error {
  override readonly name = "BarrageError";

  constructor(
    readonly code: ErrorCode,
    message: string,
    /** Whether the same request can succeed later. */
    readonly retry = false,
    /** Not before this many milliseconds; 0: not said. */
    readonly retryAfterMs = 0,
    /** Who has to change something. */
    readonly fault: "none" | "client" | "server" = "none",
  ) {
    super(message || code);
  }
}

/** A code from its name in the schema or its number; one that is newer than this library counts as `INTERNAL`. */
export function codeOf(value: unknown): ServerErrorCode {
  if (value === undefined || value === null) return "NONE";
  const name = typeof value === "number" ? SERVER_ERROR_CODES[value] : String(value).replace(/^ERROR_CODE_/, "");
  return SERVER_ERROR_CODES.find((code) => code === name) ?? "INTERNAL";
}

/** The error that the server answers a request with. */
export function errorOf({ code, message, fault, retry, retryAfterMs }: WireError): BarrageError {
  return new BarrageError(code, message, retry, retryAfterMs, fault);
}

/** What an option's function threw: worth another try, unless it says otherwise. */
export function asError(thrown: unknown): BarrageError {
  if (thrown instanceof BarrageError) return thrown;
  return new BarrageError("UNREACHABLE", thrown instanceof Error ? thrown.message : String(thrown), true);
}

/**
 * Whether the server ended a connection for a frame that it was sent. Which one is not known, so none that was under way
 * is sent again; the session goes on by another connection.
 */
export function isOfOneFrame(error: BarrageError): boolean {
  return error.code === "BAD_REQUEST" || error.code === "TOO_LARGE";
}

/** What a WebSocket close code says where no `Goodbye` came before it; `undefined`: a dropped connection. */
export function errorOfClose(closeCode: number, reason: string): BarrageError | undefined {
  const known = CLOSE_CODES[closeCode];
  return known && new BarrageError(known[0], reason, known[1]);
}

/** Close codes as in `proto::error::TABLE`, and whether to connect again. */
const CLOSE_CODES: Record<number, [ServerErrorCode, boolean]> = {
  1002: ["BAD_REQUEST", true],
  1009: ["TOO_LARGE", true],
  1011: ["INTERNAL", true],
  1013: ["UNAVAILABLE", true],
  4001: ["UNAUTHENTICATED", false],
  4002: ["TOKEN_EXPIRED", true],
  4003: ["FORBIDDEN", false],
  4005: ["BANNED", false],
  4008: ["TOO_FAST", true],
  4010: ["TOO_MANY_CONNECTIONS", true],
  4011: ["TOO_SLOW", true],
  4012: ["IDLE", true],
  4013: ["KICKED", false],
  4014: ["REPLACED", false],
  4015: ["DRAINING", true],
};
