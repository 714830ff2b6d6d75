/** What a client is tested in: a clock that is moved by hand, and WebSockets whose other end is the test. */

import { Client, type ClientEvents, type ClientOptions } from "../client/index.js";
import type { Clock, WebSocketLike } from "../client/options.js";

type Json = Record<string, any>; // eslint-style strictness ends where the wire begins: the tests look at raw frames

export class ManualClock implements Clock {
  private at = 1_000_000;
  private timers = new Map<number, { at: number; run: () => void }>();
  private last = 0;

  now(): number {
    return this.at;
  }

  setTimeout(run: () => void, ms: number): number {
    this.timers.set(++this.last, { at: this.at + ms, run });
    return this.last;
  }

  clearTimeout(timer: unknown): void {
    this.timers.delete(timer as number);
  }

  get pending(): number {
    return this.timers.size;
  }

  /** Moves on, running what falls due in its order; promises settle in between. */
  async advance(ms: number): Promise<void> {
    const end = this.at + ms;
    for (;;) {
      await settle();
      const [next] = [...this.timers].filter(([, t]) => t.at <= end).sort(([a, x], [b, y]) => x.at - y.at || a - b);
      if (!next) break;
      this.timers.delete(next[0]);
      this.at = Math.max(this.at, next[1].at);
      next[1].run();
    }
    this.at = end;
    await settle();
  }
}

/** Lets promise callbacks run that are ready. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 20; i += 1) await Promise.resolve();
}

export class FakeSocket implements WebSocketLike {
  readyState = 0;
  onopen: ((event: never) => void) | null = null;
  onmessage: ((event: never) => void) | null = null;
  onclose: ((event: never) => void) | null = null;
  onerror: ((event: never) => void) | null = null;
  closedWith: number | undefined;
  private readonly received: Json[] = [];

  constructor(
    readonly url: string,
    readonly protocols: string[],
  ) {}

  send(text: string): void {
    this.received.push(JSON.parse(text) as Json);
  }

  close(code?: number): void {
    this.closedWith = code;
  }

  // ---- the server's end ----

  open(): void {
    this.readyState = 1;
    this.onopen?.({} as never);
  }

  /** The oldest request with this body that was not taken yet; the test fails if there is none. */
  take(body: string): Json {
    const at = this.received.findIndex((frame) => body in frame);
    if (at < 0) throw new Error(`no ${body} among ${JSON.stringify(this.received)}`);
    return this.received.splice(at, 1)[0] as Json;
  }

  has(body: string): boolean {
    return this.received.some((frame) => body in frame);
  }

  tell(frame: Json): void {
    this.onmessage?.({ data: JSON.stringify(frame) } as never);
  }

  drop(code = 1006, reason = ""): void {
    this.readyState = 3;
    this.onclose?.({ code, reason } as never);
  }
}

export interface Told {
  name: keyof ClientEvents;
  event: any;
}

export class World {
  readonly clock = new ManualClock();
  readonly sockets: FakeSocket[] = [];
  readonly told: Told[] = [];
  readonly client: Client;

  constructor(options: Partial<ClientOptions> = {}) {
    const { sockets } = this;
    this.client = new Client({
      url: "ws://test/",
      clock: this.clock,
      random: () => 0,
      WebSocket: class extends FakeSocket {
        constructor(url: string, protocols: string[]) {
          super(url, protocols);
          sockets.push(this);
        }
      },
      ...options,
    });
    const names = ["state", "connected", "message", "gap", "subscribed", "unsubscribed", "online", "refreshed", "goodbye", "refused", "error"] as const;
    for (const name of names) this.client.on(name, (event: unknown) => this.told.push({ name, event }));
  }

  get socket(): FakeSocket {
    const socket = this.sockets.at(-1);
    if (!socket) throw new Error("no socket was opened");
    return socket;
  }

  events(name: keyof ClientEvents): any[] {
    return this.told.filter((t) => t.name === name).map((t) => t.event);
  }

  /** Plays the server up to `Connected`, and answers the first ping. */
  async connect(connected: Json = {}): Promise<FakeSocket> {
    const before = this.sockets.length;
    void this.client.connect().catch(() => {});
    await settle();
    if (this.sockets.length === before && this.client.state.name !== "connecting") throw new Error("no attempt");
    return this.accept(connected);
  }

  /** The same on a socket that is being opened. */
  async accept(connected: Json = {}): Promise<FakeSocket> {
    const { socket } = this;
    socket.open();
    const { request } = socket.take("connect");
    socket.tell({ request, connected: { session: "s.1", uid: "u1", name: "U", heartbeatS: 30, ...connected } });
    const ping = socket.take("ping");
    socket.tell({ request: ping.request, pong: { timeMs: String(this.clock.now()) } });
    await settle();
    return socket;
  }

  /** Subscribes `channel` and plays the server, up to position (`log`, `offset`). */
  async subscribed(channel: string, offset: number, log = "L1", options = {}): Promise<void> {
    void this.client.subscribe(channel, options);
    await settle();
    const { request } = this.socket.take("subscribe");
    this.socket.tell({ request, subscribed: { channel, position: { log, normal: String(offset), high: String(offset) }, online: "1" } });
    await settle();
  }
}

export function message(channel: string, offset: number, text: string, lane?: "LANE_HIGH"): Json {
  return { message: { channel, id: `m${offset}`, offset: String(offset), timeMs: "1", type: "text", text, ...(lane && { lane }), sender: { uid: "u2", name: "V" } } };
}
