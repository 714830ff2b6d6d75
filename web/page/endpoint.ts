/** Where to connect: `GET /v1/connect` of the host that served the page says. */

import { BarrageError, type Endpoint } from "../client/index.js";

/** The clients' second default port, where a server in front answers no `/v1/connect`. */
const PORT = 3102;

/** Asked before every attempt, so that a viewer comes back to a node that is there. */
export async function endpoint(): Promise<Endpoint> {
  const answer = await fetch("/v1/connect", { headers: { accept: "application/json" }, signal: AbortSignal.timeout(5_000) });
  if (answer.status === 404) {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    return { url: `${scheme}//${location.hostname}:${PORT}/` };
  }
  if (!answer.ok) throw new BarrageError("UNAVAILABLE", `/v1/connect says ${answer.status}`, true, 0, "server");
  const { websocket, backoff } = (await answer.json()) as Answer;
  const url = websocket[Math.floor(Math.random() * websocket.length)];
  if (url === undefined) throw new BarrageError("UNREACHABLE", "/v1/connect names no address", true);
  return {
    url,
    ...(backoff && {
      backoff: { baseMs: backoff.base_ms, maxMs: backoff.max_ms, factor: backoff.factor, jitter: backoff.jitter },
    }),
  };
}

interface Answer {
  websocket: string[];
  backoff?: { base_ms: number; max_ms: number; factor: number; jitter: number };
}
