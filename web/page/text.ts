/** What the page says, in English and Chinese. */

import type { ErrorCode } from "../client/index.js";

export type Language = "en" | "zh";

const EN = {
  skip: "Skip to the message box",
  live: "LIVE",
  stage: "Live picture",
  chat: "Chat",
  send: "Send",
  say: "Say something",
  style: "Style of your danmaku",
  mode: "Where it shows",
  modeFly: "Flying",
  modeTop: "Top",
  modeBottom: "Bottom",
  colour: "Colour",
  gifts: "Likes and gifts",
  like: "Like",
  close: "Close",
  settings: "Settings",
  danmaku: "Danmaku",
  bulletsToggle: "Show danmaku",
  show: "Show danmaku",
  density: "Density",
  speed: "Speed",
  opacity: "Opacity",
  area: "Area",
  size: "Text size",
  looks: "Appearance",
  theme: "Light or dark",
  themeSystem: "As the system",
  themeLight: "Light",
  themeDark: "Dark",
  language: "Language",
  languageAuto: "As the browser",
  you: "You",
  guestName: "Name as a guest",
  token: "Token",
  tokenHint: "From your platform, or `barrage token`. Kept in this tab until it is closed.",
  apply: "Connect with these",
  rooms: "Switch room",
  roomId: "Room",
  roomHint: "1–64 letters, digits, _ . -",
  enter: "Enter",
  reconnect: "Connect now",
  platform: "Notice",
  newer: "New messages ↓",
  emptyChat: "Nobody has said anything yet. Be the first!",
};

export type Key = keyof typeof EN;

const ZH: Record<Key, string> = {
  skip: "跳到输入框",
  live: "直播中",
  stage: "直播画面",
  chat: "聊天",
  send: "发送",
  say: "发条弹幕吧",
  style: "弹幕样式",
  mode: "位置",
  modeFly: "滚动",
  modeTop: "顶部",
  modeBottom: "底部",
  colour: "颜色",
  gifts: "点赞与礼物",
  like: "点赞",
  close: "关闭",
  settings: "设置",
  danmaku: "弹幕",
  bulletsToggle: "显示弹幕",
  show: "显示弹幕",
  density: "密度",
  speed: "速度",
  opacity: "不透明度",
  area: "显示区域",
  size: "字号",
  looks: "外观",
  theme: "浅色或深色",
  themeSystem: "跟随系统",
  themeLight: "浅色",
  themeDark: "深色",
  language: "语言",
  languageAuto: "跟随浏览器",
  you: "身份",
  guestName: "游客昵称",
  token: "令牌",
  tokenHint: "由你的平台签发，或用 barrage token 生成。只保存在本标签页，关闭即清除。",
  apply: "以此身份连接",
  rooms: "切换房间",
  roomId: "房间号",
  roomHint: "1–64 位字母、数字或 _ . -",
  enter: "进入",
  reconnect: "立即重连",
  platform: "系统通知",
  newer: "有新消息 ↓",
  emptyChat: "还没有人说话，来发第一条吧！",
};

/** A gift's name, by its ID in the message's payload. */
export const GIFT_NAMES: Record<string, { en: string; zh: string }> = {
  rose: { en: "a rose", zh: "玫瑰" },
  star: { en: "a star", zh: "星星" },
  cake: { en: "a cake", zh: "蛋糕" },
  rocket: { en: "a rocket", zh: "火箭" },
};

type Sentence = (language: Language) => string;

const pick = (en: string, zh: string): Sentence => (language) => (language === "zh" ? zh : en);
const plural = (n: number | bigint, one: string, many: string) => (Number(n) === 1 ? one : many);

/** Sentences with something to fill in. */
export const SAY = {
  room: (id: string) => pick(`Room ${id}`, `房间 ${id}`),
  online: (n: number) => pick(`${n.toLocaleString("en")} watching`, `${n.toLocaleString("zh")} 人在看`),
  connecting: pick("Connecting…", "连接中…"),
  connected: pick("Connected", "已连接"),
  waiting: (s: number) => pick(`Reconnecting in ${s} s`, `${s} 秒后重连`),
  closed: pick("Disconnected", "已断开"),
  refused: (origin: string) =>
    pick(
      `The server does not let this page in: its connector.origins must list ${origin}.`,
      `服务器不接受此页面：其 connector.origins 必须包含 ${origin}。`,
    ),
  out: pick("Not in the room", "已不在房间"),
  missed: (n: bigint, exact: boolean) => {
    if (n === 0n) return pick("Some messages may have gone by while you were away.", "你离开期间可能错过了一些消息。");
    return pick(
      `${exact ? "" : "At least "}${n} ${plural(n, "message", "messages")} went by while you were away.`,
      `你错过了${exact ? "" : "至少 "} ${n} 条消息。`,
    );
  },
  entered: (name: string) => pick(`You are in ${name}.`, `已进入${name}。`),
  gave: (what: string, count: number) => {
    const gift = GIFT_NAMES[what];
    const times = count > 1 ? ` ×${count}` : "";
    return pick(`gave ${gift?.en ?? "a gift"}${times}`, `送出了${gift?.zh ?? "礼物"}${times}`);
  },
  give: (what: string) => pick(`Give ${GIFT_NAMES[what]?.en ?? "a gift"}`, `送${GIFT_NAMES[what]?.zh ?? "礼物"}`),
  youAre: (name: string, guest: boolean) => pick(`You are ${name}${guest ? ", a guest" : ""}.`, `你是${guest ? "游客 " : " "}${name}。`),
  tooLong: (bytes: number) => pick(`That is too long: at most ${bytes} bytes.`, `内容太长：最多 ${bytes} 字节。`),
};

/** What a person is told of an error. `waitS`: seconds until it is worth trying again, where that is known. */
export function errorText(code: ErrorCode, waitS: number, language: Language): string {
  const wait = waitS > 0 ? (language === "zh" ? `请 ${waitS} 秒后再试。` : `Try again in ${waitS} s.`) : undefined;
  const text = ERRORS[code](language);
  return wait ? `${text}${language === "zh" ? "" : " "}${wait}` : text;
}

const ERRORS: Record<ErrorCode, Sentence> = {
  NONE: pick("The connection was closed.", "连接已关闭。"),
  BAD_REQUEST: pick("The server did not understand that. Reload the page.", "服务器无法理解该请求，请刷新页面。"),
  UNAUTHENTICATED: pick("You need to sign in: your token is missing or was not accepted.", "需要登录：没有令牌，或令牌无效。"),
  TOKEN_EXPIRED: pick("Your sign-in has expired. Paste a new token in the settings.", "登录已过期，请在设置中填入新的令牌。"),
  FORBIDDEN: pick("You are not allowed to do that here.", "你没有在这里这样做的权限。"),
  MUTED: pick("You are muted here for a while.", "你已被禁言，暂时不能发言。"),
  BANNED: pick("You are banned from here.", "你已被此处封禁。"),
  NOT_SUBSCRIBED: pick("You are not in this room any more. Enter it again.", "你已不在该房间，请重新进入。"),
  TOO_LARGE: pick("That is too long. Shorten it and try again.", "内容太长，请缩短后再发。"),
  TOO_FAST: pick("You are sending too fast.", "你发得太快了，休息一下吧。"),
  TOO_MANY_ROOMS: pick("You are in too many rooms at once.", "你同时所在的房间太多了。"),
  TOO_MANY_CONNECTIONS: pick("Too many connections from your network.", "你的网络连接数过多。"),
  TOO_SLOW: pick("Your connection could not keep up. Reconnecting.", "你的网络跟不上消息速度，正在重连。"),
  IDLE: pick("The connection fell asleep. Reconnecting.", "连接闲置过久，正在重连。"),
  KICKED: pick("You were removed by a moderator.", "你已被管理员移出。"),
  REPLACED: pick("You signed in somewhere else, so this page was disconnected.", "你已在别处登录，本页面已断开。"),
  DRAINING: pick("The server is restarting. Reconnecting.", "服务器正在重启，正在重连。"),
  UNAVAILABLE: pick("The server is busy just now.", "服务器暂时繁忙。"),
  INTERNAL: pick("Something went wrong on the server.", "服务器出了点问题。"),
  CONFLICT: pick("That was already sent with other content.", "该消息已以其他内容发送过。"),
  NOT_FOUND: pick("There is no such room.", "没有这个房间。"),
  IN_PROGRESS: pick("That is already under way.", "该请求正在处理中。"),
  OUTCOME_UNKNOWN: pick("It may or may not have been sent.", "消息可能未送达。"),
  CLOSED: pick("You are disconnected.", "你已断开连接。"),
  TIMEOUT: pick("No answer from the server. It may or may not have been sent.", "服务器没有响应，消息可能未送达。"),
  QUEUE_FULL: pick("Too many messages are waiting to be sent.", "等待发送的消息太多。"),
  UNREACHABLE: pick("The server cannot be reached.", "无法连接到服务器。"),
};

export function languageOf(setting: "auto" | Language): Language {
  if (setting !== "auto") return setting;
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export function word(key: Key, language: Language): string {
  return (language === "zh" ? ZH : EN)[key];
}

/** Fills in the document's own texts: `data-i18n`, `data-i18n-label`, `data-i18n-placeholder`. */
export function translate(root: Document, language: Language): void {
  root.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of root.querySelectorAll<HTMLElement>("[data-i18n], [data-i18n-label], [data-i18n-placeholder]")) {
    const { i18n, i18nLabel, i18nPlaceholder } = element.dataset;
    if (i18n) element.textContent = word(i18n as Key, language);
    if (i18nLabel) {
      element.ariaLabel = word(i18nLabel as Key, language);
      if (element.matches("button")) element.title = word(i18nLabel as Key, language);
    }
    if (i18nPlaceholder && element instanceof HTMLInputElement) element.placeholder = word(i18nPlaceholder as Key, language);
  }
}
