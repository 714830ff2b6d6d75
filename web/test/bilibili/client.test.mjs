// The npm package `bilibili-live-ws`, unchanged, against `barrage run` (BARRAGE_BIN names the binary).
import assert from "node:assert/strict";
import { once } from "node:events";
import { after, before, test } from "node:test";
import { brotliDecompressSync, inflateSync } from "node:zlib";
import { LiveTCP, LiveWS } from "bilibili-live-ws";
import { startServer } from "../server.mjs";

const ROOM = 5440;
const MESSAGES = 1_000;
/** For all of them to arrive, and for an online number to be right; milliseconds. */
const ARRIVE_MS = 60_000;
const skip = process.env.BARRAGE_BIN ? false : "BARRAGE_BIN does not name the binary";
let server;

before(async () => {
  if (!skip) server = await startServer();
});

after(() => server?.stop());

const KINDS = [LiveWS, LiveTCP].flatMap((Kind) => [0, 2, 3].map((protover) => ({ Kind, protover, name: `${Kind.name} protover ${protover}` })));

function connect({ Kind, protover }, options = {}) {
  const [host, port] = server.clients.split(":");
  const where = Kind === LiveWS ? { address: `ws://${server.clients}/sub` } : { host, port: Number(port) };
  return new Kind(ROOM, { ...where, protover, ...options });
}

/**
 * The packets of one WebSocket message or TCP packet, in their order: `{op, version, body}`. The package itself inflates
 * each asynchronously, on several threads, so that its events may overtake each other: order is judged before that.
 */
function packets(buffer) {
  const found = [];
  for (let at = 0; at < buffer.length; at += buffer.readInt32BE(at)) {
    const body = buffer.subarray(at + 16, at + buffer.readInt32BE(at));
    const [version, op] = [buffer.readInt16BE(at + 6), buffer.readInt32BE(at + 8)];
    if (version === 2) found.push(...packets(inflateSync(body)));
    else if (version === 3) found.push(...packets(brotliDecompressSync(body)));
    else found.push({ op, version, body });
  }
  return found;
}

async function until(condition, what) {
  const deadline = Date.now() + ARRIVE_MS;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`not within ${ARRIVE_MS} ms: ${what()}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

test("a thousand pushes arrive once and in order, and the heartbeat tells the online number", { skip }, async () => {
  const clients = KINDS.map((kind) => {
    const client = connect(kind);
    const seen = { name: kind.name, client, arrived: [], told: [], versions: new Set() };
    client.on("message", (buffer) => {
      if (buffer.readInt32BE(8) === 5) seen.versions.add(buffer.readInt16BE(6));
      for (const { op, body } of packets(buffer)) {
        if (op !== 5) continue;
        const { cmd, info } = JSON.parse(String(body));
        assert.equal(cmd, "DANMU_MSG");
        seen.arrived.push(info[1]);
      }
    });
    client.on("DANMU_MSG", ({ info }) => seen.told.push(info[1]));
    client.on("error", (error) => {
      throw error;
    });
    return { ...seen, live: once(client, "live", { signal: AbortSignal.timeout(ARRIVE_MS) }) };
  });
  await Promise.all(clients.map(({ live }) => live));

  for (const { client, name } of clients) {
    let online = 0;
    const deadline = Date.now() + ARRIVE_MS;
    while (online !== clients.length && Date.now() < deadline) {
      online = await client.getOnline();
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    assert.equal(online, clients.length, name);
  }

  const expected = Array.from({ length: MESSAGES }, (_, i) => `弹幕 ${i}`);
  for (const text of expected) await server.push(ROOM, text);
  for (const { name, arrived, told, versions, client } of clients) {
    await until(() => arrived.length >= MESSAGES && told.length >= MESSAGES, () => `${name}: ${arrived.length} arrived, ${told.length} told`);
    assert.deepEqual(arrived, expected, name);
    assert.deepEqual([...told].sort(), [...expected].sort(), name);
    assert.deepEqual([...versions], [Number(name.at(-1))], `${name}: how bodies are encoded`);
    client.close();
  }
});

for (const kind of KINDS) {
  test(`${kind.name}: a bad token closes`, { skip }, async () => {
    const client = connect(kind, { key: "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl" });
    const codes = [];
    client.on("message", (buffer) => {
      for (const { op, body } of packets(buffer)) if (op === 8) codes.push(JSON.parse(String(body)).code);
    });
    await once(client, "close", { signal: AbortSignal.timeout(ARRIVE_MS) });
    assert.deepEqual(codes, [-101]);
  });
}
