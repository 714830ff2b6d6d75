import assert from "node:assert/strict";
import { test } from "node:test";
import { BarrageError } from "../client/index.js";
import { message, settle, World } from "./world.js";

const ROOM = "room:1000";

test("a token stands in the first frame and never in the address", async () => {
  const world = new World({ token: "secret.jwt", device: "d1", name: "N" });
  void world.client.connect();
  await settle();
  assert.equal(world.socket.url, "ws://test/");
  assert.deepEqual(world.socket.protocols, ["barrage.v1.json"]);
  world.socket.open();
  assert.deepEqual(world.socket.take("connect"), {
    request: 1,
    connect: { token: "secret.jwt", device: "d1", name: "N", batches: true },
  });
});

test("connect resolves with who one is", async () => {
  const world = new World();
  await world.connect({ uid: "u9", guest: true });
  const connected = await world.client.connect();
  assert.equal(connected.uid, "u9");
  assert.equal(connected.guest, true);
  assert.deepEqual(world.events("state").map((s) => s.name), ["connecting", "connected"]);
});

test("rooms are asked for behind Connect, and one left before its answer is given back", async () => {
  const world = new World();
  void world.client.connect();
  void world.client.subscribe(ROOM, { history: 5 });
  await settle();
  world.socket.open();
  const { request } = world.socket.take("connect");
  const asked = world.socket.take("subscribe");
  assert.deepEqual(asked.subscribe, { channel: ROOM, history: 5 });
  void world.client.unsubscribe(ROOM);
  void world.client.subscribe("room:2");
  assert.equal(world.socket.take("unsubscribe").unsubscribe.channel, ROOM);
  assert.equal(world.socket.take("subscribe").subscribe.channel, "room:2");
  world.socket.tell({ request, connected: { session: "s.1", uid: "u1", name: "U", heartbeatS: 30 } });
  world.socket.tell({ request: asked.request, subscribed: { channel: ROOM, position: { log: "L1", normal: "1", high: "1" } } });
  assert.equal(world.events("subscribed").length, 0, "it was left");
  assert.equal(world.socket.has("subscribe"), false, "once a connection");
});

test("after a drop the room goes on from the last message of each lane", async () => {
  const world = new World();
  await world.connect();
  await world.subscribed(ROOM, 10);
  world.socket.tell(message(ROOM, 11, "a"));
  world.socket.tell(message(ROOM, 14, "urgent", "LANE_HIGH"));
  world.socket.tell(message(ROOM, 12, "b"));
  world.socket.drop();
  assert.equal(world.client.state.name, "waiting");
  await world.clock.advance(1_000);
  await world.accept();
  const { request, subscribe } = world.socket.take("subscribe");
  assert.deepEqual(subscribe, { channel: ROOM, resume: { log: "L1", normal: "12", high: "14" } });
  world.socket.tell(message(ROOM, 13, "c"));
  world.socket.tell({ request, subscribed: { channel: ROOM, position: { log: "L1", normal: "13", high: "14" } } });
  world.socket.tell(message(ROOM, 15, "d"));
  assert.deepEqual(world.events("message").map((m) => m.text), ["a", "urgent", "b", "c", "d"]);
  assert.deepEqual(world.client.position(ROOM), { log: "L1", normal: 15n, high: 14n });
});

test("a message that comes again is not told again", async () => {
  const world = new World();
  await world.connect();
  void world.client.subscribe(ROOM, { history: 50 });
  await settle();
  assert.deepEqual(world.socket.take("subscribe").subscribe, { channel: ROOM, history: 50 });
  world.socket.tell(message(ROOM, 1, "a"));
  world.socket.tell(message(ROOM, 2, "b"));
  world.socket.drop(); // before Subscribed: the log is not known, so the history is asked for anew
  await world.clock.advance(1_000);
  await world.accept();
  assert.equal(world.socket.take("subscribe").subscribe.history, 50);
  for (const [offset, text] of [[1, "a"], [2, "b"], [3, "c"]] as const) world.socket.tell(message(ROOM, offset, text));
  assert.deepEqual(world.events("message").map((m) => m.text), ["a", "b", "c"]);
});

test("what the high lane was ahead by may come again after a drop, and is not told again", async () => {
  const world = new World();
  await world.connect();
  await world.subscribed(ROOM, 10);
  world.socket.tell(message(ROOM, 13, "urgent", "LANE_HIGH"));
  world.socket.drop();
  await world.clock.advance(1_000);
  await world.accept();
  const { request } = world.socket.take("subscribe");
  world.socket.tell({ request, subscribed: { channel: ROOM, position: { log: "L1", normal: "10", high: "10" } } });
  world.socket.tell(message(ROOM, 13, "urgent", "LANE_HIGH"));
  world.socket.tell(message(ROOM, 11, "calm"));
  assert.deepEqual(world.events("message").map((m) => m.text), ["urgent", "calm"]);
});

test("a gap is told, and a gap into another log begins its offsets anew", async () => {
  const world = new World();
  await world.connect();
  await world.subscribed(ROOM, 10);
  world.socket.tell(message(ROOM, 11, "old log"));
  world.socket.tell({ gap: { channel: ROOM, count: "7", exact: true, position: { log: "L1", normal: "18", high: "18" } } });
  assert.deepEqual(world.client.position(ROOM), { log: "L1", normal: 18n, high: 18n });
  world.socket.tell({ gap: { channel: ROOM, count: "3", position: { log: "L2", normal: "10", high: "10" } } });
  world.socket.tell(message(ROOM, 11, "new log"));
  assert.deepEqual(world.events("gap").map((g) => [g.count, g.exact]), [[7n, true], [3n, false]]);
  assert.deepEqual(world.events("message").map((m) => m.text), ["old log", "new log"]);
  assert.deepEqual(world.client.position(ROOM), { log: "L2", normal: 11n, high: 10n });
});

test("a position kept from an earlier run is gone on from", async () => {
  const world = new World();
  await world.connect();
  void world.client.subscribe(ROOM, { history: 50, resume: { log: "L1", normal: 5n, high: 0n } });
  await settle();
  assert.deepEqual(world.socket.take("subscribe").subscribe, { channel: ROOM, resume: { log: "L1", normal: "5", high: "0" } });
});

test("messages of a room that was left are not told", async () => {
  const world = new World();
  await world.connect();
  await world.subscribed(ROOM, 0);
  void world.client.unsubscribe(ROOM);
  world.socket.tell(message(ROOM, 1, "late"));
  world.socket.tell({ message: { channel: "user:u1", id: "p", timeMs: "1", type: "text", text: "push" } });
  world.socket.tell({ message: { channel: "all", id: "q", timeMs: "1", type: "text", text: "all" } });
  assert.deepEqual(world.events("message").map((m) => m.text), ["push", "all"]);
});

test("the messages of a batch count as if each had come by itself", async () => {
  const world = new World();
  await world.connect();
  await world.subscribed(ROOM, 0);
  const batch = (...offsets: number[]) => ({ batch: { messages: offsets.map((at) => message(ROOM, at, `${at}`).message) } });
  world.socket.tell(message(ROOM, 1, "1"));
  world.socket.tell(batch(2, 3));
  world.socket.tell(batch(3, 4));
  world.client.on("message", ({ offset }) => {
    if (offset === 5n) world.client.close();
  });
  world.socket.tell(batch(5, 6));
  assert.deepEqual(world.events("message").map((m) => m.text), ["1", "2", "3", "4", "5"]);
});

test("the platform may put a session into a room and take it out", async () => {
  const world = new World();
  await world.connect();
  world.socket.tell({ subscribed: { channel: ROOM, position: { log: "L1", normal: "3", high: "3" }, online: "2" } });
  world.socket.tell(message(ROOM, 4, "hello"));
  world.socket.tell({ unsubscribed: { channel: ROOM, reason: "ERROR_CODE_BANNED" } });
  world.socket.tell(message(ROOM, 5, "gone"));
  assert.deepEqual(world.events("message").map((m) => m.text), ["hello"]);
  assert.equal(world.events("unsubscribed")[0].error.code, "BANNED");
});

test("a publish in flight when the connection drops goes again under the same ID, in order, once", async () => {
  const world = new World();
  await world.connect();
  const first = world.client.publish(ROOM, "one");
  const second = world.client.publish(ROOM, "two");
  const sent = world.socket.take("publish").publish;
  assert.equal(sent.text, "one");
  assert.equal(world.socket.has("publish"), false, "one in flight");
  world.socket.drop();
  await world.clock.advance(1_000);
  await world.accept();
  const again = world.socket.take("publish");
  assert.deepEqual(again.publish, sent);
  assert.match(sent.clientMessageId, /^[A-Za-z0-9_.-]{1,64}$/);
  world.socket.tell({ request: again.request, published: { id: "m1" } });
  assert.deepEqual(await first, { id: "m1", clientMessageId: sent.clientMessageId });
  const next = world.socket.take("publish");
  assert.equal(next.publish.text, "two");
  assert.notEqual(next.publish.clientMessageId, sent.clientMessageId);
  world.socket.tell({ request: next.request, published: { id: "m2" } });
  assert.equal((await second).id, "m2");
  assert.equal(world.socket.has("publish"), false);
});

test("a publish waits until its room is taken up", async () => {
  const world = new World();
  void world.client.subscribe(ROOM);
  void world.client.publish(ROOM, "early").catch(() => {});
  await world.connect();
  assert.equal(world.socket.has("publish"), false);
  const { request } = world.socket.take("subscribe");
  world.socket.tell({ request, subscribed: { channel: ROOM, position: { log: "L1" } } });
  assert.equal(world.socket.take("publish").publish.text, "early");
});

test("the server's errors are tried again, the sender's are told at once", async () => {
  const world = new World();
  await world.connect();
  const patient = world.client.publish(ROOM, "patient");
  const { request, publish } = world.socket.take("publish");
  world.socket.tell({ request, error: { code: "ERROR_CODE_UNAVAILABLE", fault: "FAULT_SERVER", retry: true, retryAfterMs: 700 } });
  await world.clock.advance(699);
  assert.equal(world.socket.has("publish"), false);
  await world.clock.advance(1);
  const again = world.socket.take("publish");
  assert.equal(again.publish.clientMessageId, publish.clientMessageId);
  world.socket.tell({ request: again.request, published: { id: "m1" } });
  assert.equal((await patient).id, "m1");

  const hasty = world.client.publish(ROOM, "hasty");
  const hastyRequest = world.socket.take("publish").request;
  world.socket.tell({ request: hastyRequest, error: { code: "ERROR_CODE_TOO_FAST", fault: "FAULT_CLIENT", retry: true, retryAfterMs: 900 } });
  await assert.rejects(hasty, (error: BarrageError) => {
    assert.deepEqual([error.code, error.retry, error.retryAfterMs, error.fault], ["TOO_FAST", true, 900, "client"]);
    return true;
  });
});

test("a publish that is never answered is given up at its time", async () => {
  const world = new World();
  await world.connect();
  const lost = world.client.publish(ROOM, "lost", { timeoutMs: 20_000 });
  const outcome = assert.rejects(lost, { code: "TIMEOUT" });
  const ids = [world.socket.take("publish").publish.clientMessageId];
  await world.clock.advance(15_000);
  ids.push(world.socket.take("publish").publish.clientMessageId);
  assert.equal(ids[0], ids[1]);
  await world.clock.advance(5_000);
  await outcome;
});

test("publishes that wait are bounded", async () => {
  const world = new World();
  const outcomes = Array.from({ length: 101 }, (_, i) => world.client.publish(ROOM, String(i)));
  await assert.rejects(outcomes[100] as Promise<unknown>, { code: "QUEUE_FULL" });
  world.client.close();
  await assert.rejects(outcomes[0] as Promise<unknown>, { code: "CLOSED" });
});

test("concurrent publishes wait for nobody", async () => {
  const world = new World();
  await world.connect();
  for (const text of ["a", "b"]) void world.client.publish(ROOM, text, { concurrent: true }).catch(() => {});
  assert.deepEqual([world.socket.take("publish"), world.socket.take("publish")].map((f) => f.publish.text), ["a", "b"]);
});

test("each wait to connect again is longer, within its bounds, and short again after a connection that stood", async () => {
  const waits: number[] = [];
  const world = new World({ backoff: { baseMs: 100, maxMs: 1_000, factor: 2, jitter: 0.5 }, random: () => 0.5 });
  world.client.on("state", (state) => {
    if (state.name === "waiting") waits.push(state.retryAtMs - world.clock.now());
  });
  void world.client.connect().catch(() => {});
  await settle();
  for (let i = 0; i < 5; i += 1) {
    world.socket.drop();
    await world.clock.advance(waits.at(-1) ?? 0);
  }
  assert.deepEqual(waits, [75, 150, 300, 600, 750]);
  await world.accept();
  await world.clock.advance(6_000);
  world.socket.drop();
  assert.equal(waits.at(-1), 75);
});

test("a goodbye says when to come back, or that there is no use", async () => {
  const world = new World();
  await world.connect();
  world.socket.tell({ goodbye: { code: "ERROR_CODE_DRAINING", retry: true, delayMs: 4_000 } });
  world.socket.drop(4015);
  const { state } = world.client;
  assert.equal(state.name, "waiting");
  await world.clock.advance(3_999);
  assert.equal(world.sockets.length, 1);
  await world.clock.advance(2_001);
  assert.equal(world.sockets.length, 2);
  await world.accept();
  const waiting = world.client.publish(ROOM, "never");
  const outcome = assert.rejects(waiting, { code: "KICKED" });
  world.socket.tell({ goodbye: { code: "ERROR_CODE_KICKED", reason: "bye" } });
  await outcome;
  assert.equal(world.client.state.name, "closed");
  assert.equal(world.clock.pending, 0, "no timer is left");
});

test("a close code says as much where the goodbye was lost", async () => {
  const world = new World();
  await world.connect();
  world.socket.drop(4005, "banned");
  const { state } = world.client;
  assert.ok(state.name === "closed" && state.error?.code === "BANNED");
});

test("a refused connect is the end where no retry mends it", async () => {
  const world = new World({ token: "bad" });
  const outcome = assert.rejects(world.client.connect(), { code: "UNAUTHENTICATED" });
  await settle();
  world.socket.open();
  const { request } = world.socket.take("connect");
  world.socket.tell({ request, error: { code: "ERROR_CODE_UNAUTHENTICATED", fault: "FAULT_CLIENT" } });
  await outcome;
  assert.equal(world.client.state.name, "closed");
});

test("the heartbeat is in time, brings online numbers, and its silence is a lost connection", async () => {
  const world = new World();
  await world.connect({ heartbeatS: 10 });
  await world.subscribed(ROOM, 0);
  await world.clock.advance(8_000);
  const { request } = world.socket.take("ping");
  world.socket.tell({ request, pong: { online: [{ channel: ROOM, sessions: "42" }], timeMs: "5" } });
  assert.deepEqual(world.events("online").at(-1), { channel: ROOM, sessions: 42 });
  await world.clock.advance(8_000);
  assert.ok(world.socket.has("ping"));
  await world.clock.advance(15_000);
  assert.equal(world.client.state.name, "waiting");
});

test("a token is replaced before it lapses, by the server's clock", async () => {
  const asked: string[] = [];
  const world = new World({
    token: (why) => {
      asked.push(why);
      return `token${asked.length}`;
    },
  });
  void world.client.connect();
  await settle();
  world.socket.open();
  const hour = 3_600_000;
  const serverNow = world.clock.now() + 5 * hour; // our clock is five hours behind
  const { request, connect } = world.socket.take("connect");
  assert.equal(connect.token, "token1");
  world.socket.tell({ request, connected: { uid: "u1", heartbeatS: 30, expiresAtMs: String(serverNow + hour) } });
  world.socket.tell({ request: world.socket.take("ping").request, pong: { timeMs: String(serverNow) } });
  const answerPings = world.clock.now() + hour - 60_000 - 1;
  while (world.clock.now() < answerPings) {
    await world.clock.advance(Math.min(5_000, answerPings - world.clock.now()));
    while (world.socket.has("ping")) world.socket.tell({ request: world.socket.take("ping").request, pong: { timeMs: String(world.clock.now() + 5 * hour) } });
  }
  assert.deepEqual(asked, ["connect"]);
  await world.clock.advance(2);
  assert.deepEqual(asked, ["connect", "expiring"]);
  const refresh = world.socket.take("refresh");
  assert.deepEqual(refresh.refresh, { token: "token2" });
  world.socket.tell({ request: refresh.request, refreshed: { expiresAtMs: String(serverNow + 2 * hour) } });
  assert.deepEqual(world.events("refreshed"), [{ expiresAtMs: serverNow + 2 * hour }]);
  assert.equal(world.sockets.length, 1);
});

test("a request refused for a lapsed token is done with a new one", async () => {
  const world = new World({ token: (why) => why });
  await world.connect();
  const outcome = world.client.publish(ROOM, "hi");
  const { request, publish } = world.socket.take("publish");
  world.socket.tell({ request, error: { code: "ERROR_CODE_TOKEN_EXPIRED", fault: "FAULT_CLIENT", retry: true } });
  await settle();
  const refresh = world.socket.take("refresh");
  assert.equal(refresh.refresh.token, "expired");
  world.socket.tell({ request: refresh.request, refreshed: {} });
  await world.clock.advance(500);
  const again = world.socket.take("publish");
  assert.equal(again.publish.clientMessageId, publish.clientMessageId);
  world.socket.tell({ request: again.request, published: { id: "m1" } });
  assert.equal((await outcome).id, "m1");
});

test("a session closed for a lapsed token comes back with a new one, or tells where none can be had", async () => {
  const world = new World({ token: (why) => why });
  await world.connect();
  world.socket.tell({ goodbye: { code: "ERROR_CODE_TOKEN_EXPIRED", retry: true } });
  await world.clock.advance(1_000);
  world.socket.open();
  assert.equal(world.socket.take("connect").connect.token, "expired");

  const fixed = new World({ token: "once" });
  await fixed.connect();
  fixed.socket.drop(4002);
  const { state } = fixed.client;
  assert.ok(state.name === "closed" && state.error?.code === "TOKEN_EXPIRED");
});

test("a room that is refused is told, one that cannot be had just now is tried again", async () => {
  const world = new World();
  await world.connect();
  const refused = assert.rejects(world.client.subscribe("room:secret"), { code: "FORBIDDEN" });
  let { request } = world.socket.take("subscribe");
  world.socket.tell({ request, error: { code: "ERROR_CODE_FORBIDDEN", fault: "FAULT_CLIENT" } });
  await refused;
  assert.equal(world.events("unsubscribed")[0].channel, "room:secret");
  const had = world.client.subscribe(ROOM);
  ({ request } = world.socket.take("subscribe"));
  world.socket.tell({ request, error: { code: "ERROR_CODE_UNAVAILABLE", fault: "FAULT_SERVER", retry: true } });
  await world.clock.advance(500);
  ({ request } = world.socket.take("subscribe"));
  world.socket.tell({ request, subscribed: { channel: ROOM, position: { log: "L1" } } });
  assert.equal((await had).channel, ROOM);
});

test("an address that does not answer is given up, and the next is tried", async () => {
  const world = new World({ url: ["ws://a/", "ws://b/"] });
  void world.client.connect().catch(() => {});
  await settle();
  await world.clock.advance(10_000);
  assert.equal(world.client.state.name, "waiting");
  assert.equal(world.sockets[0]?.closedWith, 1000);
  await world.clock.advance(1_000);
  assert.deepEqual(world.sockets.map((s) => s.url), ["ws://a/", "ws://b/"]);
});

test("wake connects at once; close ends everything", async () => {
  const world = new World({ url: () => ({ url: "ws://asked/" }) });
  await world.connect();
  world.socket.drop();
  world.client.wake();
  await settle();
  assert.equal(world.sockets.length, 2);
  await world.accept();
  const waiting = assert.rejects(world.client.publish(ROOM, "x"), { code: "CLOSED" });
  world.client.close();
  await waiting;
  assert.equal(world.socket.closedWith, 1000);
  assert.equal(world.clock.pending, 0);
  await assert.rejects(world.client.subscribe(ROOM), { code: "CLOSED" });
});

test("what makes no sense is told and ends nothing", async () => {
  const world = new World();
  const socket = await world.connect();
  socket.onmessage?.({ data: "{" } as never);
  socket.onmessage?.({ data: "[]" } as never);
  socket.tell({ fromAFutureVersion: {} });
  socket.tell({ message: null });
  assert.equal(world.events("error").length, 2);
  assert.equal(world.client.state.name, "connected");
});

test("a frame that the server takes ill ends one connection, and what was under way is not sent again", async () => {
  for (const end of ["close", "goodbye"]) {
    const world = new World();
    await world.connect();
    await world.subscribed(ROOM, 10);
    const inFlight = assert.rejects(world.client.publish(ROOM, "poison"), { code: "OUTCOME_UNKNOWN" });
    const behind = world.client.publish(ROOM, "behind it");
    world.socket.take("publish");
    if (end === "close") world.socket.drop(1009, "the message is longer than the limit");
    else world.socket.tell({ goodbye: { code: "ERROR_CODE_BAD_REQUEST", reason: "no" } });
    await inFlight;
    assert.equal(world.client.state.name, "waiting", end);
    await world.clock.advance(1_000);
    await world.accept();
    const { request } = world.socket.take("subscribe");
    world.socket.tell({ request, subscribed: { channel: ROOM, position: { log: "L1", normal: "10", high: "10" } } });
    const again = world.socket.take("publish");
    assert.equal(again.publish.text, "behind it");
    world.socket.tell({ request: again.request, published: { id: "m1" } });
    assert.equal((await behind).id, "m1");
    world.client.close();
  }
});

test("a ban from a room says how long it lasts, and the room is taken up again when it ends", async () => {
  const world = new World();
  await world.connect();
  await world.subscribed(ROOM, 10);
  world.socket.tell({ unsubscribed: { channel: ROOM, reason: "ERROR_CODE_BANNED", retryAfterMs: 10_000 } });
  const [{ channel, error }] = world.events("unsubscribed");
  assert.deepEqual([channel, error.code, error.retryAfterMs], [ROOM, "BANNED", 10_000]);
  // What is published meanwhile is refused at once and does not wait for the end.
  const back = world.client.subscribe(ROOM);
  const refused = assert.rejects(world.client.publish(ROOM, "let me"), { code: "BANNED" });
  const { request: asked } = world.socket.take("publish");
  world.socket.tell({ request: asked, error: { code: "ERROR_CODE_BANNED", fault: "FAULT_CLIENT", retryAfterMs: 9_000 } });
  await refused;
  assert.equal(world.socket.has("subscribe"), false);
  await world.clock.advance(10_000);
  let { request } = world.socket.take("subscribe");
  // It was made longer.
  world.socket.tell({ request, error: { code: "ERROR_CODE_BANNED", fault: "FAULT_CLIENT", retryAfterMs: 5_000 } });
  await world.clock.advance(5_000);
  const again = world.socket.take("subscribe");
  assert.deepEqual(again.subscribe.resume, { log: "L1", normal: "10", high: "10" });
  ({ request } = again);
  world.socket.tell({ request, subscribed: { channel: ROOM, position: { log: "L1", normal: "10", high: "10" } } });
  world.socket.tell(message(ROOM, 11, "back"));
  assert.equal((await back).channel, ROOM);
  assert.deepEqual(world.events("message").map((m) => m.text), ["back"]);
  world.client.close();
  assert.equal(world.clock.pending, 0);
});

test("a message that only its room's owner refuses is told", async () => {
  const world = new World();
  await world.connect();
  world.socket.tell({ refused: { channel: ROOM, id: "m1", clientMessageId: "c1", code: "ERROR_CODE_CONFLICT" } });
  assert.deepEqual(world.events("refused"), [{ channel: ROOM, id: "m1", clientMessageId: "c1", code: "CONFLICT" }]);
  assert.equal(world.client.state.name, "connected");
});

test("a gap says why", async () => {
  const world = new World();
  await world.connect();
  await world.subscribed(ROOM, 10);
  world.socket.tell({ gap: { channel: ROOM, count: "7", exact: true, reasons: { slow: "4", capped: "3" } } });
  assert.deepEqual(world.events("gap")[0].reasons, { slow: 4n, shed: 0n, capped: 3n, aged: 0n, unknown: 0n });
});

test("a page of an origin that the server refuses is told which settings must list it, and comes back late", async () => {
  let reached = true;
  const browser = { origin: "https://other.example", reaches: (url: string) => Promise.resolve(url === "http://test/" && reached) };
  const world = new World({ browser });
  const warnings: string[] = [];
  const { warn } = console;
  console.warn = (text: string) => warnings.push(text);
  try {
    void world.client.connect().catch(() => {});
    for (let attempt = 1; attempt <= 2; attempt++) {
      await settle();
      world.socket.drop();
      await settle();
      const { state } = world.client;
      assert.ok(state.name === "waiting" && state.error?.code === "FORBIDDEN", state.name);
      assert.match(state.error.message, /connector\.origins .*logic\.origins .*https:\/\/other\.example/);
      await world.clock.advance(30_000 * attempt - 1);
      assert.equal(world.sockets.length, attempt);
      await world.clock.advance(2_000);
    }
    assert.equal(warnings.length, 1, "once");
    reached = false;
    world.socket.drop();
    await settle();
    const { state } = world.client;
    assert.ok(state.name === "waiting" && state.error?.code === "UNREACHABLE");
  } finally {
    console.warn = warn;
    world.client.close();
  }
});
