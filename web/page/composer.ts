/** The message box: text, where it shows and its colour. What could not be sent comes back into the box. */

import { element } from "./element.js";

/** The palette; the first is a viewer's default, and is not sent. Names are for people who do not see them. */
const COLOURS: [number, string][] = [
  [0, "white"],
  [0xff5c7a, "red"],
  [0xffa13d, "orange"],
  [0xffe14d, "yellow"],
  [0x5fe08a, "green"],
  [0x4fd3ff, "cyan"],
  [0x7f9bff, "blue"],
  [0xd58bff, "violet"],
];

/** Characters from which on the rest is counted down. */
const LEFT_SHOWN_FROM = 160;

export class Composer {
  private readonly form = element("composer", HTMLFormElement);
  private readonly box = element("say", HTMLInputElement);
  private readonly left = element("say-left", HTMLElement);
  private readonly popover = element("style", HTMLElement);
  private readonly opener = element("style-open", HTMLButtonElement);
  private composing = false;

  /** `send` tells whether it was sent. */
  constructor(private readonly send: (text: string, style: { mode: number; colour: number }) => Promise<boolean>) {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.composing) void this.submit();
    });
    // The Enter that takes an input method's suggestion is not the one that sends.
    this.box.addEventListener("compositionstart", () => (this.composing = true));
    this.box.addEventListener("compositionend", () => (this.composing = false));
    this.box.addEventListener("input", () => {
      this.showLeft();
    });
    this.wireStyle();
  }

  private async submit(): Promise<void> {
    const text = this.box.value.trim();
    if (text === "") return;
    this.box.value = "";
    this.showLeft();
    this.open(false);
    this.form.classList.add("sending");
    const sent = await this.send(text, { mode: this.chosen("mode"), colour: this.chosen("colour") });
    this.form.classList.remove("sending");
    if (!sent && this.box.value === "") this.box.value = text;
  }

  private chosen(name: string): number {
    const value = new FormData(this.form).get(name);
    return typeof value === "string" ? Number(value) : 0;
  }

  private showLeft(): void {
    const { length } = this.box.value;
    this.left.textContent = length >= LEFT_SHOWN_FROM ? String(this.box.maxLength - length) : "";
  }

  private wireStyle(): void {
    const palette = COLOURS.map(([colour, name], i) => {
      const label = document.createElement("label");
      const radio = document.createElement("input");
      radio.type = "radio";
      radio.name = "colour";
      radio.value = String(colour);
      radio.checked = i === 0;
      radio.ariaLabel = name;
      const dot = document.createElement("i");
      dot.style.background = css(colour);
      label.append(radio, dot);
      return label;
    });
    element("colours", HTMLElement).append(...palette);
    this.popover.addEventListener("change", () => {
      this.opener.style.setProperty("--chosen", css(this.chosen("colour")));
    });
    this.opener.addEventListener("click", () => {
      this.open(this.popover.hidden !== false);
    });
    document.addEventListener("pointerdown", (event) => {
      const { target } = event;
      if (target instanceof Node && !this.popover.contains(target) && !this.opener.contains(target)) this.open(false);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !this.popover.hidden) {
        this.open(false);
        this.opener.focus();
      }
    });
  }

  private open(open: boolean): void {
    this.popover.hidden = !open;
    this.opener.ariaExpanded = String(open);
  }
}

function css(colour: number): string {
  return colour === 0 ? "#ffffff" : `#${colour.toString(16).padStart(6, "0")}`;
}
