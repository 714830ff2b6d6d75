import assert from "node:assert/strict";
import { test } from "node:test";
import { WebSocket } from "ws";
import { Client, type ClientOptions } from "../client/index.js";
import { FakeServer } from "./fake-server.mjs";

test("over real sockets, in Node, a client comes back by itself and misses nothing", { timeout: 30_000 }, async () => {
  const server = await new FakeServer().start();
  const client = new Client({
    url: `ws://127.0.0.1:${server.port}/`,
    WebSocket: WebSocket as unknown as NonNullable<ClientOptions["WebSocket"]>,
    backoff: { baseMs: 20, maxMs: 100 },
  });
  const texts: string[] = [];
  const all = new Promise<void>((resolve) => {
    client.on("message", ({ text }) => {
      texts.push(text ?? "");
      if (texts.length === 6) resolve();
    });
  });
  await client.connect();
  await client.subscribe("room:7");
  for (const text of ["a", "b"]) await client.publish("room:7", text);
  await server.stop();
  const waiting = client.publish("room:7", "while it is away");
  for (const text of ["c", "d"]) server.publish("7", { text });
  await server.start(server.port);
  await waiting;
  await client.publish("room:7", "z");
  await all;
  assert.deepEqual(texts, ["a", "b", "c", "d", "while it is away", "z"]);
  client.close();
  await server.stop();
});
