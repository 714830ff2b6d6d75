/**
 * Likes and gifts. On the wire they are messages of the room like any other, with a small JSON text as the payload:
 *
 * - type `like`: `{"count":3}`: so many hearts, those of a second together in one message;
 * - type `gift`: `{"gift":"rose","count":1}`: the gift's ID, and how many.
 *
 * Whoever reads one checks it: a viewer may have sent anything under these types. Selling gifts is the platform's own
 * affair: it would refuse `gift` from clients and publish it itself.
 */

import { giftPicture } from "./chat.js";
import { GIFT_NAMES } from "./text.js";

export const GIFTS = Object.keys(GIFT_NAMES);

/** More at once is shown as this many. */
const COUNT_MAX = 99;
/** Hearts clicked within this go as one message, milliseconds. */
const LIKES_TOGETHER_MS = 700;
/** Hearts that rise at once. */
const HEARTS_MAX = 24;
/** A heart's way up, and a banner's stay, milliseconds. */
const HEART_MS = 1_800;
const BANNER_MS = 4_500;
const BANNERS_MAX = 3;

export function readLike(payload: string): number | undefined {
  return count(parse(payload));
}

export function readGift(payload: string): { gift: string; count: number } | undefined {
  const parsed = parse(payload);
  const gift = parsed?.gift;
  const n = count(parsed);
  return typeof gift === "string" && GIFTS.includes(gift) && n !== undefined ? { gift, count: n } : undefined;
}

export function writeLike(n: number): string {
  return JSON.stringify({ count: n });
}

export function writeGift(gift: string): string {
  return JSON.stringify({ gift, count: 1 });
}

/** Counts clicks and sends them together. */
export class Likes {
  private pending = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly send: (count: number) => void) {}

  click(): void {
    this.pending = Math.min(COUNT_MAX, this.pending + 1);
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      this.send(this.pending);
      this.pending = 0;
    }, LIKES_TOGETHER_MS);
  }
}

/** Hearts rise from the lower right of `stage`. */
export function raiseHearts(stage: HTMLElement, n: number): void {
  if (document.hidden || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const free = HEARTS_MAX - stage.querySelectorAll(".heart").length;
  for (let i = 0; i < Math.min(n, free, 8); i += 1) {
    const heart = document.createElement("span");
    heart.className = "heart";
    heart.append(heartPicture());
    heart.style.color = `hsl(${330 + Math.random() * 50} 90% 65%)`;
    stage.append(heart);
    const drift = (Math.random() - 0.5) * 90;
    const flight = heart.animate(
      [
        { transform: "translate(0, 0) scale(.3)", opacity: 0 },
        { transform: `translate(${drift * 0.3}px, -50px) scale(1)`, opacity: 1, offset: 0.2 },
        { transform: `translate(${drift}px, -${180 + Math.random() * 80}px) scale(.8) rotate(${drift / 3}deg)`, opacity: 0 },
      ],
      { duration: HEART_MS, delay: i * 90, easing: "ease-out", fill: "both" },
    );
    flight.onfinish = () => {
      heart.remove();
    };
  }
}

/** Shows who gave what for a while. */
export function showBanner(list: HTMLElement, name: string, text: string, gift: string): void {
  const item = document.createElement("li");
  const words = document.createElement("span");
  const who = document.createElement("b");
  who.textContent = name;
  words.append(who, text);
  item.append(words, giftPicture(gift));
  list.append(item);
  while (list.childElementCount > BANNERS_MAX) list.firstElementChild?.remove();
  setTimeout(() => {
    item.remove();
  }, BANNER_MS);
}

function heartPicture(): SVGSVGElement {
  const svg = giftPicture("");
  svg.firstElementChild?.setAttribute("href", "#i-heart");
  return svg;
}

function parse(payload: string): { gift?: unknown; count?: unknown } | undefined {
  try {
    const value: unknown = JSON.parse(payload);
    return typeof value === "object" && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
}

function count(value: { count?: unknown } | undefined): number | undefined {
  const n = value?.count;
  return typeof n === "number" && Number.isInteger(n) && n > 0 ? Math.min(n, COUNT_MAX) : undefined;
}
