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
 * - a frame that the server takes ill ends one connection and not the session;
 * - every promise is settled, every timer ended, when the client is closed.
 */

import { BACKOFF, Backoff } from "./backoff.js";
import { type Channel, type Deferred, deferred, newChannel, settling } from "./channel.js";
import { Emitter } from "./emitter.js";
import { BarrageError, asError, errorOf, errorOfClose, isOfOneFrame } from "./error.js";
import { type Body, type Connected, type Message, type Position, type Request, type Subscribed, SUBPROTOCOL, decode } from "./frame.js";
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
  STABLE_AFTER_MS,
  type State,
  type SubscribeOptions,
  type WebSocketConstructor,
  type WebSocketLike,
} from "./options.js";
import { type Browser, errorOfHandshake, thisBrowser } from "./origin.js";
import { type Item, Outbox } from "./outbox.js";
import { type Answer, Requests } from "./requests.js";
import { TIMER_MS_MAX, Token } from "./token.js";

/** The ping's interval as a part of the server's allowance, so that one that is late is still in time. */
const HEARTBEAT_PART = 0.8;
/** The heartbeat of a server that names none, seconds. */
const HEARTBEAT_S = 30;
/** Waits between tries of one request that the server could not do just now, milliseconds: doubled up to the second. */
const RETRY_MS = 500;
const RETRY_MS_MAX = 8_000;

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
  private first: Deferred<Connected> | undefined;

  private socket: WebSocketLike | undefined;
  /** `Connect` is sent: what is asked now is answered after it. */
  private introduced = false;
  /** Counts connections: what belongs to an earlier one is too late. */
  private generation = 0;
  private attempts = 0;
  private addresses = 0;
  private readonly requests: Requests;
  /** How often the server refused pages of this origin. */
  private refusals = 0;
  private session: Connected | undefined;

  private readonly token: Token;
  /** The server's clock minus ours, milliseconds. */
  private clockSkewMs = 0;
  private parting: BarrageError | undefined;

  private readonly channels = new Map<string, Channel>();
  private readonly outboxes = new Map<string, Outbox>();

  private connectTimer: unknown;
  private stableTimer: unknown;
  private pingTimer: unknown;
  private waitTimer: unknown;

  constructor(private readonly options: ClientOptions) {
    super();
    this.clock = options.clock ?? SYSTEM_CLOCK;
    this.random = options.random ?? Math.random;
    this.backoff = new Backoff({ ...BACKOFF, ...options.backoff }, this.random);
    // A socket that closes under us tells so by its close event; what it did not take is sent again then.
    this.requests = new Requests(this.clock, (text) => this.socket?.send(text));
    this.token = new Token(options.token, this.clock, {
      serverNow: () => this.serverNow(),
      request: (body, answered) => {
        this.request(body, answered);
      },
      refreshed: (expiresAtMs) => {
        this.emit("refreshed", { expiresAtMs });
      },
      failed: (error) => {
        this.emit("error", error);
      },
    });
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
      const token = await this.token.get();
      if (generation !== this.generation) return;
      this.open(generation, url, token);
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

  private open(generation: number, url: string, token: string): void {
    const Socket = this.options.WebSocket ?? (globalThis as { WebSocket?: WebSocketConstructor }).WebSocket;
    if (!Socket) throw new BarrageError("UNREACHABLE", "no WebSocket here: give one as an option");
    const socket = new Socket(url, [SUBPROTOCOL]);
    this.socket = socket;
    const mine = () => generation === this.generation;
    let opened = false;
    this.connectTimer = this.clock.setTimeout(() => {
      this.lost(new BarrageError("UNREACHABLE", `no answer from ${url}`, true));
    }, CONNECT_TIMEOUT_MS);
    socket.onopen = () => {
      opened = true;
      if (mine()) this.introduce(token);
    };
    socket.onmessage = (event: { data: unknown }) => {
      if (mine() && typeof event.data === "string") this.received(event.data);
    };
    socket.onerror = () => {}; // a close follows, and says as much
    socket.onclose = (event: { code: number; reason: string }) => {
      if (!mine()) return;
      const browser = opened ? undefined : (this.options.browser ?? thisBrowser());
      if (browser) void this.refusedAt(generation, browser, url);
      else this.lost(errorOfClose(event.code, event.reason) ?? new BarrageError("UNREACHABLE", event.reason || "the connection dropped", true));
    };
  }

  /** The socket at `url` did not open: looks why, where that can be known. */
  private async refusedAt(generation: number, browser: Browser, url: string): Promise<void> {
    const error = await errorOfHandshake(browser, url, this.refusals);
    if (generation !== this.generation) return;
    if (error.code === "FORBIDDEN" && this.refusals++ === 0) console.warn(`barrage: ${error.message}`);
    this.lost(error);
  }

  private introduce(token: string): void {
    const { device, name } = this.options;
    const connect = { ...(token && { token }), ...(device && { device }), ...(name && { name }), batches: true };
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
    this.refusals = 0;
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
    const why = this.parting ?? error;
    this.parting = undefined;
    this.hangUp(why);
    if (why.code === "TOKEN_EXPIRED") {
      this.token.lapse();
      if (!this.token.isRenewable) {
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

  private hangUp(why?: BarrageError): void {
    this.stopTimers();
    this.token.stop();
    const { socket } = this;
    this.socket = undefined;
    this.introduced = false;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.onerror = () => {};
      socket.close(1000);
    }
    const unanswered = this.requests.drop();
    for (const channel of this.channels.values()) {
      this.clock.clearTimeout(channel.timer);
      channel.live = undefined;
    }
    for (const outbox of this.outboxes.values()) {
      if (why && isOfOneFrame(why)) {
        outbox.failInFlight(new BarrageError("OUTCOME_UNKNOWN", `the server ended the connection (${why.message}): whether it had an effect is not known`));
      }
      outbox.interrupted();
    }
    for (const end of unanswered) end();
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
    for (const timer of [this.connectTimer, this.stableTimer, this.pingTimer, this.waitTimer]) clock.clearTimeout(timer);
  }

  // ---- frames ----

  /** Sends a request on the connection; `answered` is called once. */
  private request(body: Request, answered: (answer: Answer) => void): void {
    this.requests.ask(body, answered);
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
    if (request === 0) this.pushed(body);
    else this.requests.answer(request, body);
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
        const { reason, retryAfterMs } = body;
        const error = reason === "NONE" ? undefined : new BarrageError(reason, `taken out of ${body.channel}`, false, retryAfterMs);
        if (error && this.bannedFrom(channel, error)) return;
        this.dropChannel(channel, error ?? new BarrageError("CLOSED", `taken out of ${body.channel}`));
        this.emit("unsubscribed", { channel: body.channel, ...(error && { error }) });
        return;
      }
      case "goodbye": {
        const { code, reason, retry, delayMs } = body.goodbye;
        const error = new BarrageError(code === "NONE" ? "DRAINING" : code, reason, retry, delayMs);
        this.parting = isOfOneFrame(error) ? new BarrageError(code, reason, true, delayMs) : error;
        this.emit("goodbye", body.goodbye);
        if (this.socket) this.lost(this.parting);
        return;
      }
      case "error": {
        this.emit("error", errorOf(body.error));
        return;
      }
      case "refused": {
        this.emit("refused", body.refused);
        return;
      }
      case "refreshed": {
        this.token.schedule(body.expiresAtMs);
        return;
      }
      default: // answers to nothing that was asked
    }
  }

  // ---- channels ----

  private addChannel(name: string, options: SubscribeOptions): Channel {
    const channel = newChannel(name, options);
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
        if (this.bannedFrom(channel, error)) return;
        if (this.token.mend(error) || error.retry) {
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

  /** The user is banned from a channel until a known time: it is told, and asked for again then. */
  private bannedFrom(channel: Channel, error: BarrageError): boolean {
    if (error.code !== "BANNED" || error.retryAfterMs === 0) return false;
    this.clock.clearTimeout(channel.timer);
    if (!channel.banned) {
      channel.reject(error); // nothing, if it was subscribed before
      Object.assign(channel, settling()); // whoever subscribes from now on waits for the end
    }
    channel.live = undefined;
    channel.banned = true;
    channel.timer = this.clock.setTimeout(() => {
      if (this.introduced) this.takeUp(channel);
    }, Math.min(error.retryAfterMs, TIMER_MS_MAX));
    this.emit("unsubscribed", { channel: channel.name, error });
    this.pump(channel.name);
    return true;
  }

  private nowLive(channel: Channel, subscribed: Subscribed): void {
    channel.live = subscribed;
    channel.banned = false;
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
    // In a room that bans it the server refuses it at once.
    if (!this.stands || (channel && !channel.live && !channel.banned)) return;
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
        if (!this.token.mend(error) && !(error.retry && error.fault === "server")) {
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
        if (firstOfConnection) this.token.schedule(this.session?.expiresAtMs ?? 0);
        for (const online of answer.body.online) if (this.channels.has(online.channel)) this.emit("online", online);
      }
    });
  }

  private lastPingOf = 0;
}

function retryMs(tries: number, error: BarrageError): number {
  return Math.max(error.retryAfterMs, Math.min(RETRY_MS_MAX, RETRY_MS * 2 ** tries));
}

/** 22 characters of base64url: 128 random bits. */
function randomId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}
