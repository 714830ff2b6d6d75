/** Where to connect: `GET /v1/connect` of the host that served the page says. */

import { BarrageError, type Endpoint } from "../client/index.js";

/** The clients' second default port, where a server in front answers no `/v1/connect`. */
const PORT = 3102;

/** Asked before every attempt, so that a viewer comes back to a node that is there. */
export async function endpoint(): Promise<Endpoint> {
  const answer = await fetch("/v1/connect", { headers: { accept: "application/json" }, signal: AbortSignal.timeout(5_000) });
  if (answer.status === 404) return { url: `${SCHEME}//${location.hostname}:${PORT}/` };
  if (!answer.ok) throw new BarrageError("UNAVAILABLE", `/v1/connect says ${answer.status}`, true, 0, "server");
  const { nodes, backoff } = (await answer.json()) as Answer;
  const address = pick(pick(nodes)?.addresses ?? []);
  if (address === undefined) throw new BarrageError("UNREACHABLE", "/v1/connect names no address", true);
  return {
    url: `${SCHEME}//${address}/`,
    backoff: { baseMs: backoff.base_ms, maxMs: backoff.max_ms, factor: backoff.factor, jitter: backoff.jitter },
  };
}

/** What of the answer is used. */
interface Answer {
  nodes: { addresses: string[] }[];
  backoff: { base_ms: number; max_ms: number; factor: number; jitter: number };
}

/** A page that came over TLS may open no other WebSocket. */
const SCHEME = location.protocol === "https:" ? "wss:" : "ws:";

/** Any: the server lists those that are least loaded, and everyone taking the first would undo that. */
function pick<T>(list: T[]): T | undefined {
  return list[Math.floor(Math.random() * list.length)];
}
