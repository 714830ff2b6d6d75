/**
 * Bullet comments over the picture: one element each, moved by the compositor, text only, never more than
 * {@link ON_SCREEN_MAX}. What finds no room is not shown here (it stands in the chat list); one's own always is.
 */

import { FlyingLanes, StandingLanes } from "./lanes.js";
import type { Settings } from "./settings.js";

export interface Bullet {
  text: string;
  /** 1 flying, 4 bottom, 5 top; anything else flies. */
  mode: number;
  /** 0xRRGGBB; 0: white. */
  colour: number;
  own: boolean;
}

/** Elements at once, whatever the density: past it a phone drops frames. */
const ON_SCREEN_MAX = 160;
/** Bullets that wait for a free lane, and how long they may, milliseconds. */
const WAITING_MAX = 40;
const WAITING_MS_MAX = 1_200;
/** Between two tries to place what waits, milliseconds: lanes do not come free faster. */
const AGAIN_MS = 80;
/** Placed in one animation frame: each costs a measurement. */
const PLACED_A_FRAME_MAX = 16;
/** A picture's usual width, pixels: across a wider one bullets take as long. */
const USUAL_PX = 900;
/** At speed 1. A short one crosses the usual picture in six seconds. */
const PX_A_SECOND = 160;
/** A longer text flies this much faster for each pixel, as people are used to. */
const FASTER_BY_WIDTH = 0.15;
/** How long one stands at the top or the bottom, milliseconds. */
const STANDING_MS = 4_000;
/** Characters shown of one; the chat list has the rest. */
const TEXT_MAX = 100;
const FONT_PX = 24;
const LINE_HEIGHT = 1.5;

export class Bullets {
  private readonly flying = new FlyingLanes();
  private readonly top = new StandingLanes();
  private readonly bottom = new StandingLanes();
  private waiting: { bullet: Bullet; sinceMs: number }[] = [];
  private frame = 0;
  private readonly still = matchMedia("(prefers-reduced-motion: reduce)");

  constructor(
    private readonly layer: HTMLElement,
    private settings: Settings,
  ) {
    new ResizeObserver(() => {
      this.resize();
    }).observe(layer);
  }

  apply(settings: Settings): void {
    this.settings = settings;
    this.layer.style.opacity = String(settings.opacity);
    this.layer.hidden = !settings.show;
    this.resize();
    if (!settings.show) this.clear();
  }

  /** Shows `bullet` as soon as there is room, which may be never. */
  add(bullet: Bullet): void {
    if (!this.settings.show || document.hidden) return;
    if (this.waiting.length >= WAITING_MAX) {
      const dispensable = this.waiting.findIndex((w) => !w.bullet.own);
      if (dispensable < 0) return;
      this.waiting.splice(dispensable, 1);
    }
    this.waiting.push({ bullet, sinceMs: performance.now() });
    this.schedule();
  }

  clear(): void {
    this.waiting = [];
    this.flying.clear();
    this.top.clear();
    this.bottom.clear();
    this.layer.replaceChildren();
  }

  private schedule(): void {
    if (this.frame === 0) {
      this.frame = requestAnimationFrame(() => {
        this.frame = 0;
        this.placeWaiting();
      });
    }
  }

  private placeWaiting(): void {
    const now = performance.now();
    const stagePx = this.layer.clientWidth;
    const most = Math.max(1, Math.round(ON_SCREEN_MAX * this.settings.density));
    const candidates: { element: HTMLElement; bullet: Bullet; sinceMs: number }[] = [];
    for (const { bullet, sinceMs } of this.waiting.splice(0, PLACED_A_FRAME_MAX)) {
      if (now - sinceMs > WAITING_MS_MAX && !bullet.own) continue;
      if (this.layer.childElementCount >= (bullet.own ? ON_SCREEN_MAX : most)) continue;
      const element = draw(bullet);
      this.layer.append(element);
      candidates.push({ element, bullet, sinceMs });
    }
    // All are drawn, then all are measured: one layout for the frame.
    const widths = candidates.map(({ element }) => element.offsetWidth);
    const later: typeof this.waiting = [];
    candidates.forEach(({ element, bullet, sinceMs }, i) => {
      if (this.place(element, bullet, widths[i] ?? 0, stagePx, now)) return;
      element.remove();
      later.push({ bullet, sinceMs });
    });
    const more = this.waiting.length > 0;
    this.waiting = [...later, ...this.waiting];
    if (more) this.schedule();
    else if (later.length > 0) setTimeout(() => { this.schedule(); }, AGAIN_MS);
  }

  /** False: there is no room just now. */
  private place(element: HTMLElement, bullet: Bullet, width: number, stagePx: number, now: number): boolean {
    const linePx = this.fontPx() * LINE_HEIGHT;
    const heightPx = this.layer.clientHeight * this.settings.area;
    const lanes = Math.max(1, Math.floor(heightPx / linePx));
    if (bullet.mode === 4 || bullet.mode === 5 || this.still.matches) {
      const group = bullet.mode === 4 ? this.bottom : this.top;
      const lane = group.place(now, STANDING_MS, lanes) ?? (bullet.own ? 0 : undefined);
      if (lane === undefined) return false;
      element.style.inset = bullet.mode === 4 ? `auto auto ${lane * linePx}px 50%` : `${lane * linePx}px auto auto 50%`;
      element.classList.add("standing");
      setTimeout(() => {
        element.remove();
      }, STANDING_MS);
      return true;
    }
    const pxASecond = this.settings.speed * Math.max(1, stagePx / USUAL_PX) * (PX_A_SECOND + FASTER_BY_WIDTH * width);
    const durationMs = ((stagePx + width) / pxASecond) * 1000;
    const lane = this.flying.place({ startMs: now, width, durationMs }, lanes, stagePx) ?? (bullet.own ? 0 : undefined);
    if (lane === undefined) return false;
    element.style.top = `${lane * linePx}px`;
    const flight = element.animate(
      [{ transform: `translate3d(${stagePx}px, 0, 0)` }, { transform: `translate3d(${-width}px, 0, 0)` }],
      { duration: durationMs, easing: "linear", fill: "both" },
    );
    flight.onfinish = () => {
      element.remove();
    };
    return true;
  }

  private resize(): void {
    this.layer.style.fontSize = `${this.fontPx()}px`;
  }

  /** A small picture has smaller letters, so that a phone shows as many lines as a desk; a large one larger. */
  private fontPx(): number {
    const scale = Math.min(1.35, Math.max(0.67, this.layer.clientWidth / USUAL_PX));
    return Math.round(FONT_PX * this.settings.size * scale);
  }
}

function draw({ text, colour, own }: Bullet): HTMLElement {
  const element = document.createElement("div");
  element.className = own ? "bullet own" : "bullet";
  element.dataset.testid = "bullet";
  element.textContent = text.length > TEXT_MAX ? `${text.slice(0, TEXT_MAX)}…` : text;
  if (colour > 0 && colour <= 0xffffff) element.style.color = `#${colour.toString(16).padStart(6, "0")}`;
  return element;
}
