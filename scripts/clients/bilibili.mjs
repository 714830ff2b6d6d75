// usage: node bilibili.mjs LIBRARY, with URL, ROOM_ID in the environment. Prints the version when a comment with its user,
// and a popularity, were told.
import { readFileSync } from "node:fs";
import { WebSocket } from "undici";

// What these libraries take for granted: a browser's WebSocket, which Node has from 22 on.
globalThis.WebSocket ??= WebSocket;

const { URL: url, ROOM_ID } = process.env;
const room = Number(ROOM_ID);
const library = process.argv[2];
const [name] = library.split(" ");
const { hostname: host, port } = new URL(url);
let comment;
let popularity;

function seen() {
  if (!comment || popularity === undefined) return;
  if (comment !== "Ann: 弹幕") throw new Error(comment);
  console.log(JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version);
  process.exit(0);
}
const said = (user, text) => {
  comment = `${user}: ${text}`;
  seen();
};
const watched = (number) => {
  popularity = number;
  seen();
};
process.on("unhandledRejection", (why) => {
  console.error(why);
  process.exit(1);
});

const run = {
  async "bilibili-live-ws"() {
    const { LiveWS, LiveTCP } = await import("bilibili-live-ws");
    const live = library.endsWith("TCP") ? new LiveTCP(room, { host, port: Number(port) }) : new LiveWS(room, { address: url });
    live.on("DANMU_MSG", ({ info }) => said(info[2][1], info[1]));
    live.on("heartbeat", watched);
    live.on("live", () => live.heartbeat());
    live.on("error", (why) => console.error(why));
  },
  async "tiny-bilibili-ws"() {
    const { KeepLiveWS } = await import("tiny-bilibili-ws/browser");
    const live = new KeepLiveWS(room, { host, port: Number(port), path: "/sub", ssl: false, heartbeatTime: 2000, uid: 0, key: "" });
    live.on("DANMU_MSG", ({ data }) => said(data.info[2][1], data.info[1]));
    live.on("heartbeat", (event) => watched(event.data ?? event));
    live.on("error", (why) => console.error(why));
  },
  async "blive-message-listener"() {
    const { startListen } = await import("blive-message-listener/browser");
    const handler = {
      onIncomeDanmu: ({ body }) => said(body.user.uname, body.content),
      onAttentionChange: ({ body }) => watched(body.attention),
      onError: (why) => console.error(why),
    };
    startListen(room, handler, { ws: { host, port: Number(port), path: "/sub", ssl: false, heartbeatTime: 2000, uid: 0, key: "" } });
  },
  async "bilibili-live-danmaku"() {
    const { LiveWS } = await import("bilibili-live-danmaku");
    const live = new LiveWS(room, { address: url, protover: 3, uid: 0, key: "" });
    live.addEventListener("DANMU_MSG", ({ data }) => said(data.info[2][1], data.info[1]));
    live.addEventListener("HEARTBEAT_REPLY", ({ data }) => watched(data));
    live.addEventListener("error", ({ error }) => console.error(error));
  },
};
await run[name]();
setTimeout(() => {
  console.error(`told: ${comment}, ${popularity}`);
  process.exit(1);
}, 40_000);
