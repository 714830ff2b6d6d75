/**
 * The live-room page: one client, one room at a time, drawn by the parts beside this file.
 *
 * Flow: settings, room (from the address's `?room=`) ─▶ client ─▶ its events ─▶ chat list, bullets, gifts, numbers;
 * the composer, the like button and the gifts ─▶ `client.publish`.
 *
 * Whatever another viewer sends goes into `textContent` and nowhere else: test/browser holds it.
 */

import { BarrageError, Client, type Message, type State } from "../client/index.js";
import { Bullets } from "./bullets.js";
import { Chat, giftPicture } from "./chat.js";
import { Composer } from "./composer.js";
import { element } from "./element.js";
import { endpoint } from "./endpoint.js";
import { GIFTS, Likes, raiseHearts, readGift, readLike, showBanner, writeGift, writeLike } from "./gifts.js";
import { showPicture } from "./picture.js";
import { isRoomId, loadSettings, loadToken, saveSettings, saveToken, type Settings, withRoom } from "./settings.js";
import { closeOnBackdrop, SettingsDialog } from "./settings-dialog.js";
import { errorText, languageOf, SAY, translate, word } from "./text.js";

const DEFAULT_ROOM = "1000";
/** Recent messages asked for on joining. */
const HISTORY = 50;
/** Online numbers come with a ping's answer: this often they are fresh enough for a person. */
const PING_MS = 5_000;
/** A person waits no longer for a message to be sent, milliseconds. */
const SEND_TIMEOUT_MS = 15_000;
/** A notice is read by then, milliseconds. */
const NOTICE_MS = 6_000;

class Page {
  private settings = loadSettings();
  private token = loadToken();
  private room = roomOfAddress();
  private client: Client | undefined;
  /** When the room was joined, by the server's clock: what was said before is history, and does not fly. */
  private joinedMs = Infinity;
  /** Why this page is not in its room though it is connected. */
  private out: BarrageError | undefined;
  private likes = 0;
  private noticeTimer: ReturnType<typeof setTimeout> | undefined;
  private countdown: ReturnType<typeof setInterval> | undefined;

  private readonly stage = element("stage", HTMLElement);
  private readonly banners = element("banners", HTMLOListElement);
  private readonly online = element("online", HTMLElement);
  private readonly stateChip = element("state", HTMLButtonElement);
  private readonly stateText = element("state-text", HTMLElement);
  private readonly noticeLine = element("notice", HTMLElement);
  private readonly bullets = new Bullets(element("bullets", HTMLElement), this.settings);
  private readonly chat = new Chat(element("chat", HTMLOListElement), element("chat-scroll", HTMLElement), element("chat-newer", HTMLButtonElement));
  private readonly rooms = element("rooms", HTMLDialogElement);
  private readonly dialog = new SettingsDialog({
    current: () => this.settings,
    changed: (settings) => {
      this.apply(settings);
    },
    identity: (name, token) => {
      this.apply({ ...this.settings, name: name || this.settings.name });
      this.token = token;
      saveToken(token);
      this.start();
    },
  });

  private get language() {
    return languageOf(this.settings.language);
  }

  run(): void {
    if (this.settings.name === "") this.settings.name = `Guest ${1000 + Math.floor(Math.random() * 9000)}`;
    this.apply(this.settings);
    showPicture(element("picture", HTMLCanvasElement));
    new Composer((text, style) => this.publish("text", text, style));
    this.wireGifts();
    this.wireRooms();
    this.wireBar();
    this.start();
  }

  private apply(settings: Settings): void {
    this.settings = settings;
    saveSettings(settings);
    const { documentElement } = document;
    if (settings.theme === "system") delete documentElement.dataset.theme;
    else documentElement.dataset.theme = settings.theme;
    translate(document, this.language);
    this.bullets.apply(settings);
    element("bullets-toggle", HTMLButtonElement).ariaPressed = String(settings.show);
    element("chat-newer", HTMLButtonElement).textContent = word("newer", this.language);
    this.showRoom();
    this.showWho();
    if (this.client) this.showState(this.client.state);
  }

  // ---- the session ----

  /** A new session, as whom the settings say. */
  private start(): void {
    this.client?.close();
    const { token } = this;
    const client = new Client({
      url: endpoint,
      token,
      name: this.settings.name,
      pingEveryMs: PING_MS,
    });
    this.client = client;
    const mine = <E>(handle: (event: E) => void) => (event: E) => {
      if (this.client === client) handle(event);
    };
    client.on("state", mine((state) => {
      this.showState(state);
    }));
    client.on("connected", mine(() => {
      this.showWho();
    }));
    client.on("online", mine(({ channel, sessions }) => {
      if (channel === this.channel) this.showOnline(sessions);
    }));
    client.on("subscribed", mine(({ channel }) => {
      if (channel !== this.channel) return;
      this.joinedMs = client.serverNow();
      this.showOut(undefined);
    }));
    client.on("unsubscribed", mine(({ channel, error }) => {
      if (channel === this.channel && error) this.showOut(error);
    }));
    client.on("refused", mine(({ channel, code }) => {
      if (channel === this.channel) this.tell(new BarrageError(code, ""));
    }));
    client.on("gap", mine(({ channel, count, exact }) => {
      if (channel === this.channel && !(exact && count === 0n)) this.note(SAY.missed(count, exact)(this.language));
    }));
    client.on("message", mine((message) => {
      this.show(message);
    }));
    client.connect().catch(() => {}); // told by `state`
    this.enter(this.room);
  }

  private get channel(): string {
    return `room:${this.room}`;
  }

  private enter(room: string): void {
    const { client } = this;
    if (room !== this.room) void client?.unsubscribe(this.channel);
    this.room = room;
    this.joinedMs = Infinity;
    this.out = undefined;
    this.likes = 0;
    this.showLikes();
    this.chat.clear();
    this.bullets.clear();
    this.banners.replaceChildren();
    this.online.textContent = "–";
    this.apply(withRoom(this.settings, room));
    this.note(SAY.entered(SAY.room(room)(this.language))(this.language));
    client?.subscribe(this.channel, { history: HISTORY }).catch(() => {}); // told by `unsubscribed` or `state`
  }

  private async publish(type: string, text: string, style?: { mode: number; colour: number }): Promise<boolean> {
    const { client } = this;
    if (!client) return false;
    const bytesMax = client.connected?.limits.payloadBytesMax ?? 0;
    if (bytesMax > 0 && new TextEncoder().encode(text).length > bytesMax) {
      this.notice(SAY.tooLong(bytesMax)(this.language));
      return false;
    }
    try {
      await client.publish(this.channel, text, { type, timeoutMs: SEND_TIMEOUT_MS, ...(style && { style }) });
      return true;
    } catch (thrown) {
      this.tell(thrown instanceof BarrageError ? thrown : new BarrageError("INTERNAL", String(thrown)));
      return false;
    }
  }

  private show(message: Message): void {
    const { channel, offset, sender, type, text, timeMs, style } = message;
    if (channel.startsWith("room:") && channel !== this.channel) return;
    const live = offset === 0n || timeMs >= this.joinedMs;
    const own = sender !== undefined && sender.uid === this.client?.connected?.uid;
    const name = sender ? sender.name || sender.uid : word("platform", this.language);
    const who = { name, ...(sender && { uid: sender.uid }), own, timeMs };
    if (text === undefined) return; // not for this page
    if (type === "like") {
      const count = readLike(text);
      if (count === undefined) return;
      this.likes += count;
      this.showLikes();
      if (live) raiseHearts(this.stage, count);
    } else if (type === "gift") {
      const given = readGift(text);
      if (!given) return;
      const words = SAY.gave(given.gift, given.count)(this.language);
      this.chat.add({ kind: "gift", text: words, gift: given.gift, ...who });
      if (live) showBanner(this.banners, name, words, given.gift);
    } else {
      this.chat.add({ kind: sender ? "said" : "platform", text, ...who });
      if (live) this.bullets.add({ text, mode: style.mode ?? 0, colour: style.colour ?? 0, own });
    }
  }

  // ---- what is shown ----

  private note(text: string): void {
    this.chat.add({ kind: "note", text });
  }

  private tell(error: BarrageError, forMs = NOTICE_MS): void {
    this.notice(errorText(error.code, Math.ceil(error.retryAfterMs / 1000), this.language), forMs);
  }

  private notice(text: string, forMs = NOTICE_MS): void {
    this.noticeLine.textContent = text;
    this.noticeLine.hidden = false;
    clearTimeout(this.noticeTimer);
    if (forMs < Infinity) {
      this.noticeTimer = setTimeout(() => {
        this.noticeLine.hidden = true;
      }, forMs);
    }
  }

  private showState(state: State): void {
    clearInterval(this.countdown);
    const { language } = this;
    this.stateChip.dataset.state = state.name;
    this.stateChip.disabled = state.name !== "waiting" && state.name !== "closed";
    this.stateChip.title = this.stateChip.disabled ? "" : word("reconnect", language);
    if (state.name === "waiting") {
      const count = () => {
        this.stateText.textContent = SAY.waiting(Math.max(1, Math.ceil((state.retryAtMs - Date.now()) / 1000)))(language);
      };
      count();
      this.countdown = setInterval(count, 500);
      if (state.error?.code === "FORBIDDEN") this.notice(SAY.refused(location.origin)(language), Infinity);
      return;
    }
    if (state.name === "connected" && this.out) {
      this.stateChip.dataset.state = "out";
      this.stateText.textContent = SAY.out(language);
      return;
    }
    this.stateText.textContent = SAY[state.name === "idle" ? "connecting" : state.name](language);
    // Why it ended stands there until it begins again.
    if (state.name === "closed" && state.error) this.tell(state.error, Infinity);
    if (state.name === "connecting" && !this.noticeLine.hidden) this.noticeLine.hidden = true;
  }

  /** Out of the room by the platform, or in it again. What is told stands there as long as that is so. */
  private showOut(error: BarrageError | undefined): void {
    const before = this.out;
    this.out = error;
    if (error) this.tell(error, Infinity);
    else if (before) this.noticeLine.hidden = true;
    if (this.client) this.showState(this.client.state);
  }

  private showOnline(sessions: number): void {
    this.online.textContent = sessions.toLocaleString(this.language);
    element("online-chip", HTMLElement).title = SAY.online(sessions)(this.language);
    this.online.ariaLabel = SAY.online(sessions)(this.language);
  }

  private showRoom(): void {
    const name = SAY.room(this.room)(this.language);
    element("room-name", HTMLElement).textContent = name;
    document.title = `${name} · Barrage`;
  }

  private showWho(): void {
    const connected = this.client?.connected;
    const name = connected ? connected.name || connected.uid : this.settings.name;
    element("who", HTMLElement).textContent = SAY.youAre(name, connected?.guest ?? this.token === "")(this.language);
  }

  private showLikes(): void {
    element("likes", HTMLElement).textContent = this.likes.toLocaleString(this.language);
  }

  // ---- what a viewer can do ----

  private wireGifts(): void {
    const likes = new Likes((count) => void this.publish("like", writeLike(count)));
    element("like", HTMLButtonElement).addEventListener("click", () => {
      likes.click();
    });
    const buttons = GIFTS.map((gift) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.gift = gift;
      button.append(giftPicture(gift));
      button.addEventListener("click", () => void this.publish("gift", writeGift(gift)));
      return button;
    });
    element("gifts", HTMLElement).append(...buttons);
    const label = () => {
      for (const button of buttons) button.ariaLabel = button.title = SAY.give(button.dataset.gift ?? "")(this.language);
    };
    label();
    new MutationObserver(label).observe(document.documentElement, { attributeFilter: ["lang"] });
  }

  private wireRooms(): void {
    const field = element("room-id", HTMLInputElement);
    const go = (room: string) => {
      this.rooms.close();
      if (!isRoomId(room) || room === this.room) return;
      history.pushState(null, "", `?room=${encodeURIComponent(room)}`);
      this.enter(room);
    };
    element("room", HTMLButtonElement).addEventListener("click", () => {
      field.value = "";
      element("room-recent", HTMLElement).replaceChildren(
        ...this.settings.rooms.map((room) => {
          const button = document.createElement("button");
          button.type = "button";
          button.className = "chip";
          button.textContent = room;
          button.ariaCurrent = String(room === this.room);
          button.addEventListener("click", () => {
            go(room);
          });
          return button;
        }),
      );
      this.rooms.showModal();
      field.focus();
    });
    element("rooms-form", HTMLFormElement).addEventListener("submit", (event) => {
      if (event.submitter instanceof HTMLButtonElement && event.submitter.value === "cancel") return;
      event.preventDefault();
      go(field.value.trim());
    });
    // Enter in a form presses its first button, which closes: here it is to go.
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault();
      element("room-go", HTMLButtonElement).click();
    });
    closeOnBackdrop(this.rooms);
    addEventListener("popstate", () => {
      const room = roomOfAddress();
      if (room !== this.room) this.enter(room);
    });
  }

  private wireBar(): void {
    this.stateChip.addEventListener("click", () => {
      if (this.client?.state.name !== "closed") {
        this.client?.wake();
        return;
      }
      const { error } = this.client.state;
      if (error?.code === "TOKEN_EXPIRED" || error?.code === "UNAUTHENTICATED") this.dialog.open(this.token);
      else this.start();
    });
    element("theme", HTMLButtonElement).addEventListener("click", () => {
      const dark = getComputedStyle(document.documentElement).getPropertyValue("--is-dark").trim() === "1";
      this.apply({ ...this.settings, theme: dark ? "light" : "dark" });
    });
    element("bullets-toggle", HTMLButtonElement).addEventListener("click", () => {
      this.apply({ ...this.settings, show: !this.settings.show });
    });
    addEventListener("online", () => this.client?.wake());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.client?.wake();
    });
  }
}

function roomOfAddress(): string {
  const room = new URLSearchParams(location.search).get("room");
  return isRoomId(room) ? room : DEFAULT_ROOM;
}

new Page().run();
