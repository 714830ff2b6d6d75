/**
 * The chat list: what was said, as text, the newest at the bottom; what screen readers are told. Never more than
 * {@link LINES_MAX} elements; what comes faster than it can be drawn is drawn together.
 */

export interface Line {
  kind: "said" | "gift" | "platform" | "note";
  name?: string;
  uid?: string;
  text: string;
  own?: boolean;
  /** A gift's ID: its picture. */
  gift?: string | undefined;
  timeMs?: number;
}

/** Elements at once: some screens to scroll back. The oldest goes. */
const LINES_MAX = 200;
/** Between two times of drawing, milliseconds: a screen reader and a phone both want fewer and larger changes. */
const DRAW_MS = 80;
/** As good as at the bottom, pixels. */
const BOTTOM_PX = 48;

export class Chat {
  private waiting: Line[] = [];
  private timer: ReturnType<typeof setTimeout> | undefined;
  private follows = true;

  constructor(
    private readonly list: HTMLOListElement,
    private readonly scroller: HTMLElement,
    private readonly newer: HTMLButtonElement,
  ) {
    scroller.addEventListener("scroll", () => {
      this.follows = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < BOTTOM_PX;
      if (this.follows) newer.hidden = true;
    });
    newer.addEventListener("click", () => {
      this.toBottom();
    });
    new ResizeObserver(() => {
      if (this.follows) this.toBottom();
    }).observe(scroller);
  }

  add(line: Line): void {
    this.waiting.push(line);
    if (this.waiting.length > LINES_MAX) this.waiting.shift();
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      this.draw();
    }, DRAW_MS);
  }

  clear(): void {
    this.waiting = [];
    this.list.replaceChildren();
    this.newer.hidden = true;
    this.follows = true;
  }

  private draw(): void {
    const lines = this.waiting;
    this.waiting = [];
    this.list.append(...lines.map(drawLine));
    while (this.list.childElementCount > LINES_MAX) this.list.firstElementChild?.remove();
    if (this.follows || lines.some((line) => line.own)) this.toBottom();
    else this.newer.hidden = false;
  }

  private toBottom(): void {
    this.follows = true;
    this.newer.hidden = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }
}

function drawLine(line: Line): HTMLLIElement {
  const item = document.createElement("li");
  item.className = `line ${line.kind}${line.own ? " own" : ""}`;
  if (line.name !== undefined) {
    const name = document.createElement("b");
    name.textContent = line.name;
    name.style.setProperty("--hue", String(hue(line.uid ?? line.name)));
    item.append(name, " ");
  }
  const text = document.createElement("span");
  text.dataset.testid = "line";
  text.textContent = line.text;
  item.append(text);
  if (line.gift !== undefined) item.append(giftPicture(line.gift));
  if (line.timeMs) item.title = new Date(line.timeMs).toLocaleTimeString();
  return item;
}

/** A gift's picture out of the page's sprite; `gift` is one that the page knows. */
export function giftPicture(gift: string): SVGSVGElement {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.ariaHidden = "true";
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#g-${gift}`);
  svg.append(use);
  return svg;
}

/** The same person has the same colour everywhere: FNV-1a, so that IDs that differ in one letter differ in colour. */
function hue(id: string): number {
  let hash = 0x811c9dc5;
  for (const char of id) hash = Math.imul(hash ^ (char.codePointAt(0) ?? 0), 0x01000193);
  return ((hash ^ (hash >>> 15)) >>> 0) % 360;
}
