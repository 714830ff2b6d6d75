/**
 * Frames of `barrage.v1.json`: the protobuf JSON mapping of `barrage.client.v1` (proto/schema/barrage/client/v1).
 * Text in, frames out, and back: knows no socket and no clock.
 *
 * The mapping: members in lowerCamelCase, 64-bit numbers as strings, enums by name, bytes as base64, a member with its
 * default value left out. A member or an enum's name that is not known here is ignored: that is how version 1 grows.
 */

import { type ServerErrorCode, codeOf } from "./error.js";

/** The WebSocket subprotocol that these frames are spoken under. */
export const SUBPROTOCOL = "barrage.v1.json";

/** A place in a channel's log. Offsets of two logs are never compared. */
export interface Position {
  /** The log's ID; empty while it is not known. */
  log: string;
  /** Offset of the last message seen on the normal lane; 0 is before the first. */
  normal: bigint;
  /** The same of the high lane. */
  high: bigint;
}

/** The high lane is sent before what waits on the normal one; each is ordered in itself. */
export type Lane = "normal" | "high";

/** How a bullet comment wants to be shown. Zeros and absent members: the viewer's default. */
export interface Style {
  /** Bilibili's numbers: 1 flying, 4 at the bottom, 5 at the top. */
  mode?: number;
  /** Pixels; Bilibili's usual ones are 18 and 25. */
  size?: number;
  /** 0xRRGGBB. */
  colour?: number;
}

/** Who sent a message. The name is the platform's (from the token) or, for a guest, of the guest's own choosing. */
export interface Sender {
  uid: string;
  name: string;
}

/** What is delivered. Either `text` or `data` is there; an empty payload is the empty text. */
export interface Message {
  /** `room:<id>`, `user:<id>` (a push to the user or the session) or `all`. */
  channel: string;
  id: string;
  /** In the channel's log, from 1; 0: not kept, cannot be resumed from. */
  offset: bigint;
  /** When the server accepted it, milliseconds since 1970. */
  timeMs: number;
  /** Absent: the platform itself. */
  sender?: Sender;
  /** text, image, gift, like, custom, or the platform's own. */
  type: string;
  text?: string;
  data?: Uint8Array;
  style: Style;
  lane: Lane;
}

/** A message that was accepted, and then had no effect after all. */
export interface Refused {
  channel: string;
  id: string;
  clientMessageId: string;
  /** `CONFLICT`: another payload came first under the same client message ID, and stands. */
  code: ServerErrorCode;
}

/** Why messages of a gap do not come: together as many as its `count`. */
export interface GapReasons {
  /** The session read too slowly. */
  slow: bigint;
  /** The connector was overloaded. */
  shed: bigint;
  /** The room had more than it may deliver in a second. */
  capped: bigint;
  /** They were too old when they could be delivered. */
  aged: bigint;
  unknown: bigint;
}

/** Messages of the channel that this session will not get. */
export interface Gap {
  channel: string;
  count: bigint;
  /** False: at least that many. */
  exact: boolean;
  /** Where it goes on. */
  position?: Position;
  reasons: GapReasons;
}

/** What this session may do. */
export interface Limits {
  payloadBytesMax: number;
  requestsPerSMax: number;
  roomsMax: number;
}

export interface Connected {
  session: string;
  uid: string;
  name: string;
  guest: boolean;
  /** Milliseconds since 1970 at which the token lapses; 0: never. */
  expiresAtMs: number;
  /** A ping at least this often, seconds; twice this in silence closes. */
  heartbeatS: number;
  limits: Limits;
}

export interface Subscribed {
  channel: string;
  /** Where this session goes on from: what follows, the history that was asked for first, lies beyond. */
  position: Position;
  /** Sessions in the channel over the whole cluster, at most some seconds old. */
  online: number;
}

export interface Online {
  channel: string;
  sessions: number;
}

export interface WireError {
  code: ServerErrorCode;
  message: string;
  fault: "none" | "client" | "server";
  retry: boolean;
  retryAfterMs: number;
}

export interface Goodbye {
  code: ServerErrorCode;
  reason: string;
  retry: boolean;
  delayMs: number;
}

/** The body of a frame to the server, by its member's name in the oneof. */
export type Request =
  | { connect: { token?: string; device?: string; name?: string; batches?: boolean } }
  | { refresh: { token: string } }
  | { subscribe: { channel: string; resume?: Position; history?: number } }
  | { unsubscribe: { channel: string } }
  | { publish: { channel: string; clientMessageId: string; type: string; text?: string; data?: Uint8Array; style?: Style } }
  | { ping: Record<string, never> };

/** The body of a frame from the server, tagged by its member's name. */
export type Body =
  | { kind: "connected"; connected: Connected }
  | { kind: "refreshed"; expiresAtMs: number }
  | { kind: "subscribed"; subscribed: Subscribed }
  | { kind: "unsubscribed"; channel: string; reason: ServerErrorCode; retryAfterMs: number }
  | { kind: "refused"; refused: Refused }
  | { kind: "published"; id: string }
  | { kind: "pong"; online: Online[]; timeMs: number }
  | { kind: "error"; error: WireError }
  | { kind: "message"; message: Message }
  | { kind: "batch"; messages: Message[] }
  | { kind: "gap"; gap: Gap }
  | { kind: "goodbye"; goodbye: Goodbye };

export interface ServerFrame {
  /** The request that this answers; 0: a push. */
  request: number;
  body: Body;
}

/** A request as the text of one WebSocket message. */
export function encode(request: number, body: Request): string {
  return JSON.stringify({ request, ...body }, (_name, value: unknown) => {
    if (typeof value === "bigint") return value.toString();
    if (value instanceof Uint8Array) return toBase64(value);
    return typeof value === "string" ? wellFormed(value) : value;
  });
}

/**
 * `text` with U+FFFD for each half of a surrogate pair that stands alone, as browsers encode it. A text cut inside an
 * emoji has one, and `JSON.stringify` writes it as an escape that is no Unicode text. `String.toWellFormed` does the
 * same, but is missing in browsers before 2023.
 */
function wellFormed(text: string): string {
  return text.replace(/\p{Surrogate}/gu, "\uFFFD");
}

/**
 * A frame of the server's; `undefined` for a body that this version does not know.
 * @throws SyntaxError where the text is not a JSON object.
 */
export function decode(text: string): ServerFrame | undefined {
  const frame: unknown = JSON.parse(text);
  if (!isObject(frame)) throw new SyntaxError("a frame is a JSON object");
  const body = decodeBody(frame);
  return body && { request: number(frame.request), body };
}

function decodeBody(frame: Json): Body | undefined {
  if (isObject(frame.message)) return { kind: "message", message: decodeMessage(frame.message) };
  if (isObject(frame.batch)) return { kind: "batch", messages: objects(frame.batch.messages).map(decodeMessage) };
  if (isObject(frame.published)) return { kind: "published", id: string(frame.published.id) };
  if (isObject(frame.pong)) {
    const online = objects(frame.pong.online).map((o) => ({ channel: string(o.channel), sessions: number(o.sessions) }));
    return { kind: "pong", online, timeMs: number(frame.pong.timeMs) };
  }
  if (isObject(frame.error)) {
    const { code, message, fault, retry, retryAfterMs } = frame.error;
    return {
      kind: "error",
      error: {
        code: codeOf(code),
        message: string(message),
        fault: fault === "FAULT_CLIENT" || fault === 1 ? "client" : fault === "FAULT_SERVER" || fault === 2 ? "server" : "none",
        retry: retry === true,
        retryAfterMs: number(retryAfterMs),
      },
    };
  }
  if (isObject(frame.gap)) {
    const { channel, count, exact, position } = frame.gap;
    const reasons = isObject(frame.gap.reasons) ? frame.gap.reasons : {};
    return {
      kind: "gap",
      gap: {
        channel: string(channel),
        count: integer(count),
        exact: exact === true,
        ...(isObject(position) && { position: decodePosition(position) }),
        reasons: {
          slow: integer(reasons.slow),
          shed: integer(reasons.shed),
          capped: integer(reasons.capped),
          aged: integer(reasons.aged),
          unknown: integer(reasons.unknown),
        },
      },
    };
  }
  if (isObject(frame.subscribed)) {
    const { channel, position, online } = frame.subscribed;
    return {
      kind: "subscribed",
      subscribed: { channel: string(channel), position: decodePosition(position), online: number(online) },
    };
  }
  if (isObject(frame.unsubscribed)) {
    const { channel, reason, retryAfterMs } = frame.unsubscribed;
    return { kind: "unsubscribed", channel: string(channel), reason: codeOf(reason), retryAfterMs: number(retryAfterMs) };
  }
  if (isObject(frame.connected)) {
    const { session, uid, name, guest, expiresAtMs, heartbeatS } = frame.connected;
    const limits = isObject(frame.connected.limits) ? frame.connected.limits : {};
    return {
      kind: "connected",
      connected: {
        session: string(session),
        uid: string(uid),
        name: string(name),
        guest: guest === true,
        expiresAtMs: number(expiresAtMs),
        heartbeatS: number(heartbeatS),
        limits: {
          payloadBytesMax: number(limits.payloadBytesMax),
          requestsPerSMax: number(limits.requestsPerSMax),
          roomsMax: number(limits.roomsMax),
        },
      },
    };
  }
  if (isObject(frame.refused)) {
    const { channel, id, clientMessageId, code } = frame.refused;
    return {
      kind: "refused",
      refused: { channel: string(channel), id: string(id), clientMessageId: string(clientMessageId), code: codeOf(code) },
    };
  }
  if (isObject(frame.refreshed)) return { kind: "refreshed", expiresAtMs: number(frame.refreshed.expiresAtMs) };
  if (isObject(frame.goodbye)) {
    const { code, reason, retry, delayMs } = frame.goodbye;
    return {
      kind: "goodbye",
      goodbye: { code: codeOf(code), reason: string(reason), retry: retry === true, delayMs: number(delayMs) },
    };
  }
  return undefined;
}

function decodeMessage(message: Json): Message {
  const style = isObject(message.style) ? message.style : {};
  return {
    channel: string(message.channel),
    id: string(message.id),
    offset: integer(message.offset),
    timeMs: number(message.timeMs),
    ...(isObject(message.sender) && { sender: { uid: string(message.sender.uid), name: string(message.sender.name) } }),
    type: string(message.type),
    ...(typeof message.data === "string" ? { data: fromBase64(message.data) } : { text: string(message.text) }),
    style: { mode: number(style.mode), size: number(style.size), colour: number(style.colour) },
    lane: message.lane === "LANE_HIGH" || message.lane === 1 ? "high" : "normal",
  };
}

function decodePosition(position: unknown): Position {
  if (!isObject(position)) return { log: "", normal: 0n, high: 0n };
  return { log: string(position.log), normal: integer(position.normal), high: integer(position.high) };
}

type Json = Record<string, unknown>;

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function objects(value: unknown): Json[] {
  return Array.isArray(value) ? value.filter(isObject) : [];
}

function string(value: unknown): string {
  return typeof value === "string" ? value : "";
}

/** A 64-bit number that is known to be small (a time, a count), or a 32-bit one. */
function number(value: unknown): number {
  const n = typeof value === "string" || typeof value === "number" ? Number(value) : 0;
  return Number.isFinite(n) ? n : 0;
}

function integer(value: unknown): bigint {
  if (typeof value === "string" && /^\d{1,20}$/.test(value)) return BigInt(value);
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0 ? BigInt(value) : 0n;
}

function toBase64(bytes: Uint8Array): string {
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary);
}

function fromBase64(base64: string): Uint8Array {
  try {
    const binary = atob(base64.replaceAll("-", "+").replaceAll("_", "/"));
    return Uint8Array.from(binary, (c) => c.charCodeAt(0));
  } catch {
    return new Uint8Array(); // not base64: the server's defect, and no reason to lose the messages after it
  }
}
