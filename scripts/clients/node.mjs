// usage: node node.mjs LIBRARY, with URL and ROOM in the environment. Prints the library's version when all came back.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

const { URL: url, ROOM: room } = process.env;
const library = process.argv[2];
const PROTOCOL = "barrage.v1.json";
const MESSAGES = 4;
// Long enough that every library finds it worth compressing, and the same each time: the second refers back.
const TEXT = "弹幕 the same line of live chat, ".repeat(40);

let published = 0;
let arrived = 0;

function publish() {
  const body = { channel: room, clientMessageId: `m${published}`, type: "text", text: TEXT };
  return { request: 10 + published, publish: body };
}

function heard(frame) {
  if (frame.connected) return { request: 2, subscribe: { channel: room } };
  if (frame.subscribed) return publish();
  if (frame.published) return ++published < MESSAGES ? publish() : undefined;
  assert.equal(frame.message?.text, TEXT, JSON.stringify(frame));
  arrived += 1;
  return undefined;
}

async function open() {
  if (library === "ws") return new (await import("ws")).WebSocket(url, [PROTOCOL]);
  if (library === "undici") return new (await import("undici")).WebSocket(url, [PROTOCOL]);
  const { default: faye } = await import("faye-websocket");
  const { default: deflate } = await import("permessage-deflate");
  return new faye.Client(url, [PROTOCOL], { extensions: [deflate] });
}

const socket = await open();
socket.onopen = () => socket.send(JSON.stringify({ request: 1, connect: { name: library } }));
socket.onmessage = ({ data }) => {
  const answer = heard(JSON.parse(String(data)));
  if (answer) socket.send(JSON.stringify(answer));
  if (published < MESSAGES || arrived < MESSAGES) return;
  const { version } = JSON.parse(readFileSync(new URL(`node_modules/${library}/package.json`, import.meta.url)));
  console.log(version);
  process.exit(0);
};
socket.onclose = ({ code, reason }) => {
  console.error(`closed: ${code} ${reason}`);
  process.exit(1);
};
socket.onerror = ({ message }) => console.error(message);
