/**
 * One session with a Barrage cluster, kept over as many connections as it takes.
 *
 * Flow: `connect()` ─▶ attempt (address, token, socket; `Connect`, and behind it: subscribe what is wanted, from where it
 * was seen) ─▶ connected: send what waits; ping ─▶ lost ─▶ wait (backoff) ─▶ attempt ... until `close()` or an error that
 * no retry mends.
 *
 * Invariants, each held by a test in test/client.test.ts:
 * - a message comes once and in the order of its lane, over any number of connections;
 * - what is not delivered is told by a `gap` event;
 * - a publish has one effect, however often it is sent;
 * - every promise is settled, every timer ended, when the client is closed.
 */

import { BACKOFF, Backoff } from "./backoff.js";
import { Cursor } from "./cursor.js";
import { Emitter } from "./emitter.js";
import { BarrageError, errorOfClose } from "./error.js";
import { type Body, type Connected, type Message, type Position, type Request, type Subscribed, SUBPROTOCOL, type WireError, decode, encode } from "./frame.js";
import {
  CONNECT_TIMEOUT_MS,
  type ClientEvents,
  type ClientOptions,
  type Clock,
  type Endpoint,
  PUBLISH_TIMEOUT_MS,
  PUBLISH_TIMEOUT_MS_MAX,
  type PublishOptions,
  type Published,
  REQUEST_TIMEOUT_MS,
  STABLE_AFTER_MS,
  type State,
  type SubscribeOptions,
  type WebSocketConstructor,
  type WebSocketLike,
} from "./options.js";
import { type Item, Outbox } from "./outbox.js";

/** Part of a token's remaining life that is left when it is refreshed, at most {@link REFRESH_AHEAD_MS_MAX}. */
const REFRESH_AHEAD = 0.2;
const REFRESH_AHEAD_MS_MAX = 60_000;
/** Between two tries to get a new token, milliseconds. */
const REFRESH_AGAIN_MS = 5_000;
/** The longest that `setTimeout` can wait; beyond, it fires at once. */
const TIMER_MS_MAX = 2 ** 31 - 1;
/** The ping's interval as a part of the server's allowance, so that one that is late is still in time. */
const HEARTBEAT_PART = 0.8;
/** The heartbeat of a server that names none, seconds. */
const HEARTBEAT_S = 30;
/** Waits between tries of one request that the server could not do just now, milliseconds: doubled up to the second. */
const RETRY_MS = 500;
const RETRY_MS_MAX = 8_000;

type Answer = { body: Body } | { timeout: true };

interface Pending {
  readonly answered: (answer: Answer) => void;
  readonly timer: unknown;
}

interface Channel {
  readonly name: string;
  readonly history: number;
  readonly cursor: Cursor;
  /** The server has said `Subscribed` on this connection. */
  live: Subscribed | undefined;
  tries: number;
  timer: unknown;
  readonly settled: Promise<Subscribed>;
  readonly resolve: (subscribed: Subscribed) => void;
  readonly reject: (error: BarrageError) => void;
}

const SYSTEM_CLOCK: Clock = {
  now: () => Date.now(),
  setTimeout: (run, ms) => setTimeout(run, ms),
  clearTimeout: (timer) => {
    clearTimeout(timer as ReturnType<typeof setTimeout>);
  },
};

export class Client extends Emitter<ClientEvents> {
  private readonly clock: Clock;
  private readonly random: () => number;
  private backoff: Backoff;
  private current: State = { name: "idle" };
  private first: { promise: Promise<Connected>; resolve: (c: Connected) => void; reject: (e: BarrageError) => void } | undefined;

  private socket: WebSocketLike | undefined;
  /** `Connect` is sent: what is asked now is answered after it. */
  private introduced = false;
  /** Counts connections: what belongs to an earlier one is too late. */
  private generation = 0;
  private attempts = 0;
  private addresses = 0;
  private requests = new Map<number, Pending>();
  private lastRequest = 0;
  private session: Connected | undefined;

  private token: string | undefined;
  private tokenLapsed = false;
  private refreshing = false;
  /** The server's clock minus ours, milliseconds. */
  private clockSkewMs = 0;
  private parting: BarrageError | undefined;

  private readonly channels = new Map<string, Channel>();
  private readonly outboxes = new Map<string, Outbox>();

  private connectTimer: unknown;
  private stableTimer: unknown;
  private pingTimer: unknown;
  private refreshTimer: unknown;
  private waitTimer: unknown;

  constructor(private readonly options: ClientOptions) {
    super();
    this.clock = options.clock ?? SYSTEM_CLOCK;
    this.random = options.random ?? Math.random;
    this.backoff = new Backoff({ ...BACKOFF, ...options.backoff }, this.random);
  }

  get state(): State {
    return this.current;
  }

  /** Whether requests can be sent: not while a connection that was lost is being taken down, either. */
  private get stands(): boolean {
    return this.current.name === "connected" && this.socket !== undefined;
  }

  /** Who this session is, from the last `Connected`. */
  get connected(): Connected | undefined {
    return this.session;
  }

  /** Where `channel` has been seen up to: may be kept, and given to a later `subscribe`. */
  position(channel: string): Position | undefined {
    return this.channels.get(channel)?.cursor.position;
  }

  /** The server's clock, milliseconds since 1970, as of the last heartbeat: what messages' `timeMs` is compared with. */
  serverNow(): number {
    return this.clock.now() + this.clockSkewMs;
  }

  /** Resolves at the first connection; rejects if there will be none. Later ones are told by `state` and `connected`. */
  connect(): Promise<Connected> {
    if (!this.first) {
      this.first = deferred<Connected>();
      if (this.current.name === "closed") this.first.reject(this.closedError());
      else void this.attempt();
    }
    return this.first.promise;
  }

  /** Waiting to connect again? Then now: the network came back, a person asks. */
  wake(): void {
    if (this.current.name === "waiting") void this.attempt();
  }

  /** Ends the session for good. */
  close(): void {
    this.end(undefined);
  }

  /**
   * Takes up a channel, and again after each reconnection, until `unsubscribe`. May be called before `connect`.
   * @throws BarrageError (by rejecting) where the server refuses.
   */
  subscribe(name: string, options: SubscribeOptions = {}): Promise<Subscribed> {
    if (this.current.name === "closed") return Promise.reject(this.closedError());
    let channel = this.channels.get(name);
    if (!channel) {
      channel = this.addChannel(name, options);
      if (this.introduced) this.takeUp(channel);
    }
    return channel.settled;
  }

  /** Leaves a channel. Resolves when the server has said so, or is not connected anyway. */
  unsubscribe(name: string): Promise<void> {
    const channel = this.channels.get(name);
    if (!channel) return Promise.resolve();
    this.dropChannel(channel, new BarrageError("CLOSED", `unsubscribed from ${name}`));
    if (!this.introduced) return Promise.resolve();
    return new Promise((resolve) => {
      this.request({ unsubscribe: { channel: name } }, () => {
        resolve();
      });
    });
  }

  /**
   * Publishes to a channel. Sent again with the same client message ID after a reconnection or an error of the
   * server's; an error of the sender's (`TOO_FAST`, `MUTED`, ...) rejects at once.
   */
  publish(channel: string, payload: string | Uint8Array, options: PublishOptions = {}): Promise<Published> {
    if (this.current.name === "closed") return Promise.reject(this.closedError());
    let outbox = this.outboxes.get(channel);
    if (!outbox) {
      outbox = new Outbox(this.clock);
      this.outboxes.set(channel, outbox);
    }
    const publish = {
      channel,
      clientMessageId: options.clientMessageId ?? randomId(),
      type: options.type ?? "text",
      ...(typeof payload === "string" ? { text: payload } : { data: payload }),
      ...(options.style && { style: options.style }),
    };
    const timeoutMs = Math.min(options.timeoutMs ?? PUBLISH_TIMEOUT_MS, PUBLISH_TIMEOUT_MS_MAX);
    const outcome = outbox.add({ publish }, timeoutMs, options.concurrent ?? false);
    const settled = () => {
      this.pump(channel);
    };
    outcome.then(settled, settled);
    this.pump(channel);
    return outcome;
  }

  // ---- connecting ----

  private async attempt(): Promise<void> {
    this.stopTimers();
    const generation = ++this.generation;
    this.attempts += 1;
    this.become({ name: "connecting", attempt: this.attempts });
    let url: string;
    try {
      const endpoint = await this.endpoint();
      if (generation !== this.generation) return;
      url = endpoint.url;
      if (this.token === undefined || this.tokenLapsed) {
        const token = await this.askToken(this.tokenLapsed ? "expired" : "connect");
        if (generation !== this.generation) return;
        this.token = token;
        this.tokenLapsed = false;
      }
      this.open(generation, url);
    } catch (thrown) {
      if (generation === this.generation) this.lost(asError(thrown));
    }
  }

  private async endpoint(): Promise<Endpoint> {
    const { url } = this.options;
    if (typeof url === "string") return { url };
    if (Array.isArray(url)) {
      const one = url[this.addresses++ % url.length];
      if (one === undefined) throw new BarrageError("UNREACHABLE", "no address to connect to");
      return { url: one };
    }
    const endpoint = await url();
    if (endpoint.backoff && this.attempts === 1) {
      this.backoff = new Backoff({ ...BACKOFF, ...endpoint.backoff, ...this.options.backoff }, this.random);
    }
    return endpoint;
  }

  private async askToken(why: "connect" | "expiring" | "expired"): Promise<string> {
    const { token } = this.options;
    return typeof token === "function" ? await token(why) : (token ?? "");
  }

  private open(generation: number, url: string): void {
    const Socket = this.options.WebSocket ?? (globalThis as { WebSocket?: WebSocketConstructor }).WebSocket;
    if (!Socket) throw new BarrageError("UNREACHABLE", "no WebSocket here: give one as an option");
    const socket = new Socket(url, [SUBPROTOCOL]);
    this.socket = socket;
    const mine = () => generation === this.generation;
    this.connectTimer = this.clock.setTimeout(() => {
      this.lost(new BarrageError("UNREACHABLE", `no answer from ${url}`, true));
    }, CONNECT_TIMEOUT_MS);
    socket.onopen = () => {
      if (mine()) this.introduce();
    };
    socket.onmessage = (event: { data: unknown }) => {
      if (mine() && typeof event.data === "string") this.received(event.data);
    };
    socket.onerror = () => {}; // a close follows, and says as much
    socket.onclose = (event: { code: number; reason: string }) => {
      if (!mine()) return;
      this.lost(errorOfClose(event.code, event.reason) ?? new BarrageError("UNREACHABLE", event.reason || "the connection dropped", true));
    };
  }

  private introduce(): void {
    const { device, name, agent = "barrage-client/0.1" } = this.options;
    const who = { ...(this.token && { token: this.token }), ...(device && { device }), ...(name && { name }), agent };
    const connect = { ...who, batches: true };
    this.request({ connect }, (answer) => {
      if ("timeout" in answer) return; // the connect timer is as long
      if (answer.body.kind === "connected") this.stand(answer.body.connected);
      else if (answer.body.kind === "error") this.lost(errorOf(answer.body.error));
    });
    this.introduced = true;
    // A round trip earlier than after the answer, and in fewer packets.
    for (const channel of this.channels.values()) this.takeUp(channel);
  }

  /** The connection stands. */
  private stand(connected: Connected): void {
    this.clock.clearTimeout(this.connectTimer);
    this.session = connected;
    this.stableTimer = this.clock.setTimeout(() => {
      this.backoff.reset();
      this.attempts = 0;
    }, STABLE_AFTER_MS);
    this.become({ name: "connected" });
    this.emit("connected", connected);
    this.first?.resolve(connected);
    if (!this.stands) return; // a listener closed it
    this.ping();
    for (const name of this.outboxes.keys()) this.pump(name);
  }

  /** The connection, or the attempt at one, failed: again later, or never. */
  private lost(error: BarrageError): void {
    this.generation += 1;
    this.hangUp();
    const why = this.parting ?? error;
    this.parting = undefined;
    if (why.code === "TOKEN_EXPIRED") {
      this.tokenLapsed = true;
      if (typeof this.options.token !== "function") {
        this.end(why);
        return;
      }
    } else if (!why.retry) {
      this.end(why);
      return;
    }
    const waitMs = this.backoff.next(why.retryAfterMs);
    this.waitTimer = this.clock.setTimeout(() => void this.attempt(), waitMs);
    this.become({ name: "waiting", retryAtMs: this.clock.now() + waitMs, error: why });
  }

  private hangUp(): void {
    this.stopTimers();
    const { socket } = this;
    this.socket = undefined;
    this.introduced = false;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.onerror = () => {};
      socket.close(1000);
    }
    for (const { timer } of this.requests.values()) this.clock.clearTimeout(timer);
    const unanswered = [...this.requests.values()];
    this.requests.clear();
    this.refreshing = false;
    for (const channel of this.channels.values()) {
      this.clock.clearTimeout(channel.timer);
      channel.live = undefined;
    }
    for (const outbox of this.outboxes.values()) outbox.interrupted();
    for (const { answered } of unanswered) answered({ timeout: true });
  }

  private end(error: BarrageError | undefined): void {
    if (this.current.name === "closed") return;
    this.generation += 1;
    this.current = { name: "closed", ...(error && { error }) };
    this.hangUp();
    const reason = this.closedError();
    this.first?.reject(error ?? reason);
    for (const channel of [...this.channels.values()]) this.dropChannel(channel, reason);
    for (const outbox of this.outboxes.values()) outbox.failAll(reason);
    this.outboxes.clear();
    this.emit("state", this.current);
  }

  private closedError(): BarrageError {
    const cause = this.current.name === "closed" ? this.current.error : undefined;
    return cause ?? new BarrageError("CLOSED", "the client is closed");
  }

  private become(state: State): void {
    this.current = state;
    this.emit("state", state);
  }

  private stopTimers(): void {
    const { clock } = this;
    for (const timer of [this.connectTimer, this.stableTimer, this.pingTimer, this.refreshTimer, this.waitTimer]) clock.clearTimeout(timer);
  }

  // ---- frames ----

  /** Sends a request on the connection; `answered` is called once. */
  private request(body: Request, answered: (answer: Answer) => void): void {
    const id = (this.lastRequest = this.lastRequest >= 0xffff_ffff ? 1 : this.lastRequest + 1);
    const timer = this.clock.setTimeout(() => {
      this.requests.delete(id);
      answered({ timeout: true });
    }, REQUEST_TIMEOUT_MS);
    this.requests.set(id, { answered, timer });
    // A socket that closes under us tells so by its close event; what it did not take is sent again then.
    this.socket?.send(encode(id, body));
  }

  private received(text: string): void {
    let frame;
    try {
      frame = decode(text);
    } catch {
      this.emit("error", new BarrageError("INTERNAL", "a frame that is not JSON", false, 0, "server"));
      return;
    }
    if (!frame) return;
    const { request, body } = frame;
    const pending = request === 0 ? undefined : this.requests.get(request);
    if (pending) {
      this.requests.delete(request);
      this.clock.clearTimeout(pending.timer);
      pending.answered({ body });
    } else if (request === 0) {
      this.pushed(body);
    }
  }

  private delivered(message: Message): void {
    if (this.current.name === "closed") return; // by a listener, in the middle of a batch
    const channel = this.channels.get(message.channel);
    if (channel ? channel.cursor.take(message) : !message.channel.startsWith("room:")) this.emit("message", message);
  }

  private pushed(body: Body): void {
    switch (body.kind) {
      case "message":
        this.delivered(body.message);
        return;
      case "batch":
        body.messages.forEach((message) => this.delivered(message));
        return;
      case "gap": {
        const { position } = body.gap;
        if (position) this.channels.get(body.gap.channel)?.cursor.moveTo(position);
        this.emit("gap", body.gap);
        return;
      }
      case "subscribed": {
        const name = body.subscribed.channel;
        this.nowLive(this.channels.get(name) ?? this.addChannel(name, {}), body.subscribed);
        return;
      }
      case "unsubscribed": {
        const channel = this.channels.get(body.channel);
        if (!channel) return;
        const error = body.reason === "NONE" ? undefined : new BarrageError(body.reason, `taken out of ${body.channel}`);
        this.dropChannel(channel, error ?? new BarrageError("CLOSED", `taken out of ${body.channel}`));
        this.emit("unsubscribed", { channel: body.channel, ...(error && { error }) });
        return;
      }
      case "goodbye": {
        const { code, reason, retry, delayMs } = body.goodbye;
        this.parting = new BarrageError(code === "NONE" ? "DRAINING" : code, reason, retry, delayMs);
        this.emit("goodbye", body.goodbye);
        if (this.socket) this.lost(this.parting);
        return;
      }
      case "error": {
        this.emit("error", errorOf(body.error));
        return;
      }
      case "refreshed": {
        this.scheduleRefresh(body.expiresAtMs);
        return;
      }
      default: // answers to nothing that was asked
    }
  }

  // ---- channels ----

  private addChannel(name: string, options: SubscribeOptions): Channel {
    const { promise, resolve, reject } = deferred<Subscribed>();
    const channel: Channel = {
      name,
      history: options.history ?? 0,
      cursor: new Cursor(options.resume && { ...options.resume }),
      live: undefined,
      tries: 0,
      timer: undefined,
      settled: promise,
      resolve,
      reject,
    };
    this.channels.set(name, channel);
    return channel;
  }

  private dropChannel(channel: Channel, error: BarrageError): void {
    this.clock.clearTimeout(channel.timer);
    this.channels.delete(channel.name);
    channel.reject(error); // nothing, if it was subscribed before
  }

  private takeUp(channel: Channel): void {
    const { name, history, cursor } = channel;
    const resume = cursor.position;
    this.request({ subscribe: { channel: name, ...(resume ? { resume } : history > 0 && { history }) } }, (answer) => {
      if (this.channels.get(name) !== channel) return; // unsubscribed meanwhile
      if ("timeout" in answer) {
        if (this.stands) this.lost(new BarrageError("TIMEOUT", `no answer to subscribing ${name}`, true));
      } else if (answer.body.kind === "subscribed") {
        this.nowLive(channel, answer.body.subscribed);
      } else if (answer.body.kind === "error") {
        const error = errorOf(answer.body.error);
        if (this.mendToken(error) || error.retry) {
          channel.timer = this.clock.setTimeout(() => {
            this.takeUp(channel);
          }, retryMs(channel.tries++, error));
          return;
        }
        this.dropChannel(channel, error);
        this.emit("unsubscribed", { channel: name, error });
        this.pump(name);
      }
    });
  }

  private nowLive(channel: Channel, subscribed: Subscribed): void {
    channel.live = subscribed;
    channel.tries = 0;
    channel.cursor.moveTo(subscribed.position);
    channel.resolve(subscribed);
    this.emit("subscribed", subscribed);
    this.emit("online", { channel: subscribed.channel, sessions: subscribed.online });
    this.pump(channel.name);
  }

  // ---- publishing ----

  /** Sends what may be sent in `name` now. What belongs to a channel that is being taken up waits for that. */
  private pump(name: string): void {
    const outbox = this.outboxes.get(name);
    if (!outbox) return;
    if (outbox.isEmpty) {
      this.outboxes.delete(name);
      return;
    }
    const channel = this.channels.get(name);
    if (!this.stands || (channel && !channel.live)) return;
    for (const item of outbox.next()) this.send(outbox, item);
  }

  private send(outbox: Outbox, item: Item): void {
    const name = item.body.publish.channel;
    item.inFlight = true;
    item.tries += 1;
    this.request(item.body, (answer) => {
      item.inFlight = false;
      if ("timeout" in answer) {
        this.pump(name); // on a connection that is lost: nothing, until the next one stands
      } else if (answer.body.kind === "published") {
        outbox.succeed(item, answer.body.id);
      } else if (answer.body.kind === "error") {
        const error = errorOf(answer.body.error);
        if (!this.mendToken(error) && !(error.retry && error.fault === "server")) {
          outbox.fail(item, error);
          return;
        }
        const waitMs = retryMs(item.tries - 1, error);
        item.notBeforeMs = this.clock.now() + waitMs;
        this.clock.setTimeout(() => {
          this.pump(name);
        }, waitMs);
      }
    });
  }

  // ---- heartbeat and token ----

  private ping(): void {
    const heartbeatMs = (this.session?.heartbeatS || HEARTBEAT_S) * 1000 * HEARTBEAT_PART;
    this.pingTimer = this.clock.setTimeout(() => {
      this.ping();
    }, Math.min(heartbeatMs, this.options.pingEveryMs ?? heartbeatMs));
    const firstOfConnection = this.lastPingOf !== this.generation;
    this.lastPingOf = this.generation;
    this.request({ ping: {} }, (answer) => {
      if ("timeout" in answer) {
        if (this.stands) this.lost(new BarrageError("TIMEOUT", "no answer to a ping", true));
      } else if (answer.body.kind === "pong") {
        if (answer.body.timeMs > 0) this.clockSkewMs = answer.body.timeMs - this.clock.now();
        // Not before the server's clock is known: ours may be hours off.
        if (firstOfConnection) this.scheduleRefresh(this.session?.expiresAtMs ?? 0);
        for (const online of answer.body.online) if (this.channels.has(online.channel)) this.emit("online", online);
      }
    });
  }

  private lastPingOf = 0;

  private scheduleRefresh(expiresAtMs: number): void {
    this.clock.clearTimeout(this.refreshTimer);
    if (expiresAtMs === 0 || typeof this.options.token !== "function") return;
    const lifeMs = Math.max(0, expiresAtMs - this.serverNow());
    const waitMs = lifeMs - Math.min(lifeMs * REFRESH_AHEAD, REFRESH_AHEAD_MS_MAX);
    this.refreshTimer = this.clock.setTimeout(() => {
      if (waitMs > TIMER_MS_MAX) this.scheduleRefresh(expiresAtMs);
      else void this.refresh("expiring");
    }, Math.min(waitMs, TIMER_MS_MAX));
  }

  /** If `error` is a lapsed token that can be replaced: does that, and the request is worth trying again. */
  private mendToken(error: BarrageError): boolean {
    if (error.code !== "TOKEN_EXPIRED" || typeof this.options.token !== "function") return false;
    void this.refresh("expired");
    return true;
  }

  private async refresh(why: "expiring" | "expired"): Promise<void> {
    if (this.refreshing) return;
    this.refreshing = true;
    const { generation } = this;
    const again = (error: BarrageError) => {
      this.refreshing = false;
      this.emit("error", error);
      this.refreshTimer = this.clock.setTimeout(() => void this.refresh(why), REFRESH_AGAIN_MS);
    };
    try {
      const token = await this.askToken(why);
      if (generation !== this.generation) return;
      this.token = token;
      this.request({ refresh: { token } }, (answer) => {
        if (generation !== this.generation) return;
        if ("timeout" in answer) {
          again(new BarrageError("TIMEOUT", "no answer to refreshing the token", true));
        } else if (answer.body.kind === "refreshed") {
          this.refreshing = false;
          this.scheduleRefresh(answer.body.expiresAtMs);
          this.emit("refreshed", { expiresAtMs: answer.body.expiresAtMs });
        } else if (answer.body.kind === "error") {
          again(errorOf(answer.body.error));
        }
      });
    } catch (thrown) {
      if (generation === this.generation) again(asError(thrown));
    }
  }
}

function deferred<T>(): { promise: Promise<T>; resolve: (value: T) => void; reject: (error: BarrageError) => void } {
  let resolve!: (value: T) => void;
  let reject!: (error: BarrageError) => void;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  promise.catch(() => {}); // whoever does not wait for it hears of it by an event
  return { promise, resolve, reject };
}

function retryMs(tries: number, error: BarrageError): number {
  return Math.max(error.retryAfterMs, Math.min(RETRY_MS_MAX, RETRY_MS * 2 ** tries));
}

function errorOf({ code, message, fault, retry, retryAfterMs }: WireError): BarrageError {
  return new BarrageError(code, message, retry, retryAfterMs, fault);
}

/** What an option's function threw: worth another try, unless it says otherwise. */
function asError(thrown: unknown): BarrageError {
  if (thrown instanceof BarrageError) return thrown;
  return new BarrageError("UNREACHABLE", thrown instanceof Error ? thrown.message : String(thrown), true);
}

/** 22 characters of base64url: 128 random bits. */
function randomId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}
