// Drives byte streams, right and broken, in random splits, at the echo example and at an echo server on Node's `ws`,
// and wants the same back from both: messages, pongs, close code. Half of the streams offer permessage-deflate (RFC 7692)
// without context takeover, and compress some of their messages; what comes back is inflated before it is compared.
//
//     node scripts/websocket-differential.mjs [--cases 500] [--seed 1] [--echo 127.0.0.1:9001]
//
// Without --echo it builds and starts the example itself. Wants web's development dependencies (`npm ci` in web/).
// A failing case prints its seed: `--cases 1 --seed <that>` runs it alone. With --canary a `ws` that does not judge UTF-8
// stands in for the example, and the script must fail.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createRequire } from "node:module";
import net from "node:net";
import path from "node:path";
import readline from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import zlib from "node:zlib";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const { WebSocketServer } = createRequire(path.join(root, "web/package.json"))("ws");

const { values: options } = parseArgs({
  options: {
    cases: { type: "string", default: "500" },
    seed: { type: "string", default: "1" },
    echo: { type: "string" },
    canary: { type: "boolean", default: false },
  },
});

/** As the example's MESSAGE_BYTES_MAX. */
const MESSAGE_BYTES_MAX = 64 * 1024 * 1024;
/** Longest wait for a server's close, milliseconds. */
const ANSWER_MS = 20_000;

const COMPRESSED = 0x40;
const OFFER = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n";
/** What a sender leaves off a compressed message, and its receiver puts back (RFC 7692 section 7.2.1). */
const TAIL = Buffer.from([0, 0, 0xff, 0xff]);

const CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10;

/** mulberry32: the same numbers for the same seed. */
function dice(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  };
  return {
    below: (count) => next() % count,
    pick: (list) => list[next() % list.length],
    once: (count) => next() % count === 0,
    bytes: (count) => Buffer.from(Array.from({ length: count }, () => next() & 255)),
  };
}

/** A client's frame; `wrong` says what about it is. */
function frame(random, opcode, payload, { fin = true, reserved = 0, masked = true, form, claims } = {}) {
  const bytes = claims ?? BigInt(payload.length);
  const chosen = form ?? (bytes < 126n ? 7 : bytes < 65536n ? 16 : 64);
  const length = Buffer.alloc({ 7: 1, 16: 3, 64: 9 }[chosen]);
  length[0] = chosen === 7 ? Number(bytes) : chosen === 16 ? 126 : 127;
  if (chosen === 16) length.writeUInt16BE(Number(bytes), 1);
  if (chosen === 64) length.writeBigUInt64BE(bytes, 1);
  if (masked) length[0] |= 0x80;
  const first = Buffer.from([(fin ? 0x80 : 0) | reserved | opcode]);
  if (!masked) return Buffer.concat([first, length, payload]);
  const mask = random.bytes(4);
  const body = Buffer.from(payload.map((byte, at) => byte ^ mask[at % 4]));
  return Buffer.concat([first, length, mask, body]);
}

const TEXTS = ["", "plain", "弹幕", "é", "\u{10ffff}", "line\nline", "\u0000", "x".repeat(125), "弹".repeat(300)];

/** A message's bytes as a client compresses them, in one of the ways that it may. */
function deflated(random, bytes) {
  const level = random.pick([0, 1, 6, 9]);
  const strategy = random.pick([zlib.constants.Z_DEFAULT_STRATEGY, zlib.constants.Z_FIXED, zlib.constants.Z_HUFFMAN_ONLY]);
  const whole = zlib.deflateRawSync(bytes, { level, strategy, finishFlush: zlib.constants.Z_SYNC_FLUSH });
  return whole.subarray(0, whole.length - TAIL.length);
}

const inflated = (bytes) =>
  zlib.inflateRawSync(Buffer.concat([bytes, TAIL]), { finishFlush: zlib.constants.Z_SYNC_FLUSH });

function payloadOf(random, opcode) {
  if (opcode === TEXT) {
    return Buffer.from(Array.from({ length: random.below(4) }, () => random.pick(TEXTS)).join(""));
  }
  const length = random.pick([0, 1, 3, 16, 125, 126, 127, 1000, 5000]);
  return random.once(40) ? Buffer.alloc(65_536 + random.below(5000), random.below(256)) : random.bytes(length);
}

/** A message, in fragments as it falls, with pings between them. */
function message(random, deflate) {
  const opcode = random.pick([TEXT, BINARY]);
  let rest = payloadOf(random, opcode);
  let reserved = 0;
  if (deflate && !random.once(3)) {
    rest = deflated(random, rest);
    reserved = COMPRESSED;
  }
  const frames = [];
  let next = opcode;
  while (random.once(2) && frames.length < 12) {
    const cut = random.below(rest.length + 1);
    frames.push(frame(random, next, rest.subarray(0, cut), { fin: false, reserved }));
    reserved = 0;
    rest = rest.subarray(cut);
    next = CONTINUATION;
    if (random.once(3)) frames.push(frame(random, random.pick([PING, PONG]), random.bytes(random.below(126))));
  }
  const form = rest.length < 126 && random.once(10) ? random.pick([16, 64]) : undefined;
  frames.push(frame(random, next, rest, { form, reserved }));
  return Buffer.concat(frames);
}

const BAD_UTF8 = ["ff", "80", "c080", "e09f80", "eda080", "f08f8080", "f4908080", "f8888080", "e5bc", "61c3", "f09f98"];

const close = (random, code, reason = Buffer.alloc(0)) => {
  const body = Buffer.alloc(2);
  body.writeUInt16BE(code);
  return frame(random, CLOSE, Buffer.concat([body, reason]));
};

/** Each: one fault, whole, and the codes that may answer it where the specification leaves a choice. */
const FAULTS = {
  "reserved bit": (r) => [frame(r, TEXT, payloadOf(r, TEXT), { reserved: r.pick([0x10, 0x20, 0x40]) })],
  "reserved opcode": (r) => [frame(r, r.pick([3, 4, 5, 6, 7, 11, 12, 13, 14, 15]), r.bytes(r.below(10)))],
  "no mask": (r) => [frame(r, r.pick([TEXT, BINARY, PING]), Buffer.from("abc"), { masked: false })],
  "long control": (r) => [frame(r, r.pick([CLOSE, PING, PONG]), r.bytes(126 + r.below(300)))],
  "fragmented control": (r) => [frame(r, r.pick([PING, PONG]), r.bytes(5), { fin: false })],
  "continuation of nothing": (r) => [frame(r, CONTINUATION, r.bytes(5), { fin: r.once(2) })],
  "message within a message": (r) => [
    Buffer.concat([frame(r, BINARY, r.bytes(5), { fin: false }), frame(r, r.pick([TEXT, BINARY]), Buffer.from("x"))]),
  ],
  "too large": (r) => [frame(r, BINARY, r.bytes(5), { form: 64, claims: BigInt(MESSAGE_BYTES_MAX + 1 + r.below(999)) })],
  "too large together": (r) => [
    Buffer.concat([
      frame(r, BINARY, r.bytes(5), { fin: false }),
      frame(r, CONTINUATION, r.bytes(5), { form: 64, claims: BigInt(MESSAGE_BYTES_MAX - 4) }),
    ]),
  ],
  // We call it a broken frame, ws a large one.
  "length of 2^63": (r) => [frame(r, BINARY, Buffer.alloc(0), { form: 64, claims: 1n << 63n }), [1002, 1009]],
  "text that is not": (r) => [frame(r, TEXT, Buffer.concat([payloadOf(r, TEXT), Buffer.from(r.pick(BAD_UTF8), "hex")]))],
  "text that is not, in fragments": (r) => {
    const bad = Buffer.concat([Buffer.from("é"), Buffer.from(r.pick(BAD_UTF8), "hex")]);
    const cut = r.below(bad.length + 1);
    return [
      Buffer.concat([
        frame(r, TEXT, bad.subarray(0, cut), { fin: false }),
        frame(r, CONTINUATION, bad.subarray(cut)),
      ]),
    ];
  },
  "close of one byte": (r) => [frame(r, CLOSE, r.bytes(1))],
  "close of a bad code": (r) => [close(r, r.pick([0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535]))],
  "close of bad text": (r) => [close(r, 1000, Buffer.from(r.pick(BAD_UTF8), "hex"))],
};

/** The same where compression was agreed to: one of the reserved bits then has a meaning (RFC 7692 section 6). */
const DEFLATE_FAULTS = {
  ...FAULTS,
  "reserved bit": (r) => [frame(r, TEXT, payloadOf(r, TEXT), { reserved: r.pick([0x10, 0x20]) })],
  "compressed control": (r) => [frame(r, r.pick([PING, PONG]), r.bytes(5), { reserved: COMPRESSED })],
  "compressed continuation": (r) => [
    Buffer.concat([
      frame(r, BINARY, r.bytes(5), { fin: false }),
      frame(r, CONTINUATION, deflated(r, r.bytes(9)), { reserved: COMPRESSED }),
    ]),
  ],
  // A block of the kind that there is not (RFC 1951 section 3.2.3).
  "compressed, broken": (r) => [
    frame(r, BINARY, Buffer.concat([Buffer.from([7]), r.bytes(r.below(9))]), { reserved: COMPRESSED }),
  ],
  "compressed text that is not": (r) => {
    const bad = Buffer.concat([payloadOf(r, TEXT), Buffer.from(r.pick(BAD_UTF8), "hex")]);
    return [frame(r, TEXT, deflated(r, bad), { reserved: COMPRESSED })];
  },
};

/** A stream: messages, then a fault or not, then a close. */
function stream(seed) {
  const random = dice(seed);
  const deflate = random.once(2);
  const faults = deflate ? DEFLATE_FAULTS : FAULTS;
  const parts = Array.from({ length: random.below(5) }, () =>
    random.once(4) ? frame(random, random.pick([PING, PONG]), random.bytes(random.below(126))) : message(random, deflate),
  );
  const kind = random.once(3) ? "no fault" : random.pick(Object.keys(faults));
  const [fault, codes] = faults[kind]?.(random) ?? [Buffer.alloc(0)];
  parts.push(fault, random.once(8) ? frame(random, CLOSE, Buffer.alloc(0)) : close(random, random.pick([1000, 1001, 1011, 1014, 3000, 4999]), Buffer.from("再见")));
  if (random.once(4)) parts.push(message(random, deflate));
  const bytes = Buffer.concat(parts);
  const pieces = [];
  const most = random.pick([1, 7, 100, 5000, bytes.length]);
  for (let at = 0; at < bytes.length; ) {
    // Single bytes at the beginning are enough: more pieces only take time.
    const size = pieces.length > 200 ? bytes.length : 1 + random.below(most);
    pieces.push(bytes.subarray(at, (at += size)));
  }
  return { kind: deflate ? `deflate: ${kind}` : kind, codes, deflate, pieces };
}

/** What a server sends back, as far as its close. */
async function answer({ host, port }, pieces, deflate) {
  const socket = net.connect({ host, port, noDelay: true });
  const deadline = setTimeout(() => socket.destroy(new Error("no close in time")), ANSWER_MS);
  let received = Buffer.alloc(0);
  let failure;
  socket.on("error", (error) => (failure = error));
  const ended = new Promise((resolve) => socket.on("close", resolve));
  const result = { frames: [], close: undefined };
  let head = true;
  const take = () => {
    if (head) {
      const end = received.indexOf("\r\n\r\n");
      if (end < 0) return;
      if (!received.toString("latin1").startsWith("HTTP/1.1 101 ")) throw new Error(received.toString("latin1"));
      const taken = /^sec-websocket-extensions:.*permessage-deflate/im.test(received.toString("latin1", 0, end));
      if (taken !== deflate) throw new Error(`the answer has permessage-deflate: ${taken}`);
      received = received.subarray(end + 4);
      head = false;
    }
    while (received.length >= 2) {
      const short = received[1] & 127;
      const at = short === 126 ? 4 : short === 127 ? 10 : 2;
      if (received.length < at) return;
      const length = short === 126 ? received.readUInt16BE(2) : short === 127 ? Number(received.readBigUInt64BE(2)) : short;
      if (received.length < at + length) return;
      let payload = received.subarray(at, at + length);
      if (result.close !== undefined) throw new Error("a frame after the close");
      const reserved = received[0] & 0x70;
      if (reserved === COMPRESSED && deflate) payload = inflated(payload);
      else if (reserved) throw new Error(`a server's frame of ${received[0]}`);
      if (!(received[0] & 0x80) || received[1] & 0x80) throw new Error(`a server's frame of ${received[0]} ${received[1]}`);
      const opcode = received[0] & 15;
      if (opcode === CLOSE) result.close = length >= 2 ? payload.readUInt16BE(0) : "none";
      else result.frames.push(`${opcode} ${payload.toString("base64")}`);
      received = received.subarray(at + length);
    }
    if (result.close !== undefined) socket.end();
  };
  socket.on("data", (chunk) => {
    received = Buffer.concat([received, chunk]);
    try {
      take();
    } catch (error) {
      failure = error;
      socket.destroy();
    }
  });
  socket.write("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
    `Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n${deflate ? OFFER : ""}\r\n`);
  for (const piece of pieces) {
    if (socket.destroyed || socket.writableEnded) break;
    socket.write(piece);
    await new Promise((resolve) => setImmediate(resolve));
  }
  await ended;
  clearTimeout(deadline);
  // What we write after its close may be answered by a reset.
  if (failure && result.close === undefined) result.failure = String(failure.message);
  return result;
}

async function reference(skipUTF8Validation = false) {
  const server = new WebSocketServer({
    host: "127.0.0.1",
    port: 0,
    perMessageDeflate: { threshold: 0 },
    maxPayload: MESSAGE_BYTES_MAX,
    skipUTF8Validation,
  });
  server.on("connection", (socket) => {
    // ws 8.23 reads on after a fault, if it was still inflating what came before when the rest arrived, and then throws.
    const receiver = socket._receiver;
    const write = receiver._write.bind(receiver);
    receiver._write = (chunk, encoding, done) => (receiver._errored ? done() : write(chunk, encoding, done));
    socket.on("message", (data, binary) => socket.send(data, { binary }));
    // Told by its close.
    socket.on("error", () => {});
  });
  await once(server, "listening");
  return { server, host: "127.0.0.1", port: server.address().port };
}

async function example() {
  if (options.canary) return reference(true);
  if (options.echo) {
    const [host, port] = options.echo.split(":");
    return { host, port: Number(port) };
  }
  const run = ["run", "-q", "--locked", "-p", "connector", "--example", "echo", "--", "--listen", "127.0.0.1:0"];
  const child = spawn("cargo", run, { cwd: root, stdio: ["ignore", "pipe", "inherit"] });
  for await (const line of readline.createInterface({ input: child.stdout })) {
    const [, port] = line.match(/^listening on 127\.0\.0\.1:(\d+)$/) ?? [];
    if (port) return { child, host: "127.0.0.1", port: Number(port) };
  }
  throw new Error("the echo example did not start");
}

const [ours, theirs] = await Promise.all([example(), reference()]);
const counts = new Map();
let differing = 0;
for (let seed = Number(options.seed); seed < Number(options.seed) + Number(options.cases); seed += 1) {
  const { kind, codes, deflate, pieces } = stream(seed);
  const [got, expected] = await Promise.all([answer(ours, pieces, deflate), answer(theirs, pieces, deflate)]);
  counts.set(kind, (counts.get(kind) ?? 0) + 1);
  const may = codes?.includes(got.close) && codes.includes(expected.close);
  if (may) got.close = expected.close;
  if (JSON.stringify(got) !== JSON.stringify(expected)) {
    differing += 1;
    const brief = (result) => JSON.stringify({ ...result, frames: result.frames.map((text) => text.slice(0, 60)) });
    console.log(`seed ${seed} (${kind}):\n  ours ${brief(got)}\n  ws   ${brief(expected)}`);
  }
}
console.log(`${options.cases} streams from seed ${options.seed}, ${differing} answered otherwise than ws answers them`);
for (const [kind, count] of [...counts].sort()) console.log(`  ${String(count).padStart(4)} ${kind}`);
ours.child?.kill();
process.exit(differing ? 1 : 0);
