// A server of the page and of `barrage.v1.json` for trying the page without the binary: `node test/fake-server.mjs PORT`.
// Rooms in memory, everyone a guest. Not a reference: where it and the binary differ, the binary is right.
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { WebSocketServer } from "ws";

const MIMES = { html: "text/html; charset=utf-8", css: "text/css", js: "text/javascript", svg: "image/svg+xml" };
const CSP = "default-src 'self'; connect-src 'self' http: https: ws: wss:; object-src 'none'; base-uri 'none'";
export class FakeServer {
  rooms = new Map();
  sessions = new Set();
  published = new Map();
  offset = 0;
  /** Of a session; one more is too fast. */
  publishesASecond = 5;

  async start(port = 0) {
    this.http = createServer((request, response) => void this.serve(request, response));
    this.sockets = new WebSocketServer({ server: this.http, handleProtocols: (offered) => (offered.has("barrage.v1.json") ? "barrage.v1.json" : false) });
    this.sockets.on("connection", (socket) => {
      this.accept(socket);
    });
    await new Promise((resolve) => this.http.listen(port, "127.0.0.1", resolve));
    this.port = this.http.address().port;
    return this;
  }

  /** Drops every connection, as a crash would; the rooms stay. */
  async stop() {
    for (const socket of this.sockets.clients) socket.terminate();
    this.sessions.clear();
    await new Promise((resolve) => this.http.close(resolve));
  }

  publish(room, message) {
    const channel = `room:${room}`;
    this.offset += 1;
    const full = { channel, id: `m${this.offset}`, offset: String(this.offset), timeMs: String(Date.now()), type: "text", ...message };
    const messages = this.room(channel);
    messages.push(full);
    if (messages.length > 200) messages.shift();
    for (const session of this.sessions) if (session.channels.has(channel)) send(session, 0, { message: full });
    return full.id;
  }

  room(channel) {
    if (!this.rooms.has(channel)) this.rooms.set(channel, []);
    return this.rooms.get(channel);
  }

  online(channel) {
    return [...this.sessions].filter((s) => s.channels.has(channel)).length;
  }

  async serve(request, response) {
    const { pathname: path, searchParams } = new URL(request.url, "http://fake");
    if (path === "/goim/push/room") {
      let text = "";
      for await (const chunk of request) text += chunk;
      this.publish(searchParams.get("room"), { text });
      response.end(JSON.stringify({ code: 0 }));
      return;
    }
    if (path === "/v1/connect") {
      response.setHeader("content-type", "application/json");
      const backoff = { base_ms: 200, max_ms: 1000, factor: 1.5, jitter: 0.5 };
      response.end(JSON.stringify({ nodes: [{ addresses: [`127.0.0.1:${this.port}`] }], heartbeat_s: 30, backoff, guests: "send" }));
      return;
    }
    const file = path === "/" ? "index.html" : path.slice(1);
    try {
      if (!/^[a-z.]+$/.test(file)) throw new Error("not ours");
      const bytes = await readFile(fileURLToPath(new URL(`../dist/${file}`, import.meta.url)));
      response.setHeader("content-type", MIMES[file.split(".").pop()]);
      response.setHeader("content-security-policy", CSP);
      response.end(bytes);
    } catch {
      response.statusCode = 404;
      response.end();
    }
  }

  accept(socket) {
    const session = { socket, channels: new Set(), uid: "", name: "", sent: [] };
    socket.on("message", (data, isBinary) => {
      if (!isBinary) this.handle(session, JSON.parse(String(data)));
    });
    socket.on("close", () => this.sessions.delete(session));
  }

  handle(session, { request, ...body }) {
    if (body.connect) {
      session.uid = `guest.${Math.random().toString(36).slice(2, 8)}`;
      session.name = body.connect.name ?? "";
      this.sessions.add(session);
      const limits = { payloadBytesMax: 4096, requestsPerSMax: 20, roomsMax: 8 };
      send(session, request, { connected: { session: `s.${session.uid}`, uid: session.uid, name: session.name, guest: true, heartbeatS: 30, limits } });
    } else if (body.subscribe) {
      const { channel, resume, history = 0 } = body.subscribe;
      session.channels.add(channel);
      const messages = this.room(channel);
      const from = resume && resume.log === "fake" ? Number(resume.normal ?? 0) : undefined;
      const due = from === undefined ? messages.slice(messages.length - history) : messages.filter((m) => Number(m.offset) > from);
      const after = due.length > 0 ? String(Number(due[0].offset) - 1) : String(this.offset);
      const position = { log: "fake", normal: after, high: after };
      send(session, request, { subscribed: { channel, position, online: String(this.online(channel)) } });
      for (const message of due) send(session, 0, { message });
    } else if (body.unsubscribe) {
      session.channels.delete(body.unsubscribe.channel);
      send(session, request, { unsubscribed: body.unsubscribe });
    } else if (body.ping) {
      const online = [...session.channels].map((channel) => ({ channel, sessions: String(this.online(channel)) }));
      send(session, request, { pong: { online, timeMs: String(Date.now()) } });
    } else if (body.publish) {
      const { channel, clientMessageId, ...message } = body.publish;
      const now = Date.now();
      session.sent = session.sent.filter((at) => at > now - 1000);
      const known = this.published.get(clientMessageId);
      if (!known && session.sent.length >= this.publishesASecond) {
        const error = { code: "ERROR_CODE_TOO_FAST", message: "slower", fault: "FAULT_CLIENT", retry: true, retryAfterMs: 1000 };
        send(session, request, { error });
        return;
      }
      session.sent.push(now);
      const id = known ?? this.publish(channel.slice("room:".length), { ...message, sender: { uid: session.uid, name: session.name } });
      this.published.set(clientMessageId, id);
      send(session, request, { published: { id } });
    } else {
      send(session, request, { error: { code: "ERROR_CODE_BAD_REQUEST", message: "unknown", fault: "FAULT_CLIENT" } });
    }
  }
}

function send({ socket }, request, body) {
  socket.send(JSON.stringify({ ...(request > 0 && { request }), ...body }));
}

if (process.argv[1]?.endsWith("fake-server.mjs")) {
  const server = await new FakeServer().start(Number(process.argv[2] ?? 0));
  console.log(`http://127.0.0.1:${server.port}/`);
}
