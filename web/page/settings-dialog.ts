/** The settings dialog: what it shows is what is set, each change at once. Who one is changes only on "apply". */

import { element } from "./element.js";
import type { Settings } from "./settings.js";

export interface Changes {
  /** What was set before it. */
  current(): Settings;
  changed(settings: Settings): void;
  identity(name: string, token: string): void;
}

const RANGES = ["density", "speed", "opacity", "area", "size"] as const;

export class SettingsDialog {
  private readonly dialog = element("settings", HTMLDialogElement);
  private readonly form = element("settings-form", HTMLFormElement);

  constructor(private readonly changes: Changes) {
    this.form.addEventListener("input", (event) => {
      this.read(event.target);
    });
    element("settings-open", HTMLButtonElement).addEventListener("click", () => {
      this.open();
    });
    element("identity-apply", HTMLButtonElement).addEventListener("click", () => {
      const name = this.control("name", HTMLInputElement).value.trim();
      const token = this.control("token", HTMLTextAreaElement).value.trim();
      this.dialog.close();
      this.changes.identity(name, token);
    });
    closeOnBackdrop(this.dialog);
  }

  open(token?: string): void {
    this.write();
    if (token !== undefined) this.control("token", HTMLTextAreaElement).value = token;
    this.dialog.showModal();
  }

  private write(): void {
    const settings = this.changes.current();
    this.control("show", HTMLInputElement).checked = settings.show;
    for (const name of RANGES) {
      const range = this.control(name, HTMLInputElement);
      range.value = String(settings[name]);
      showValue(range);
    }
    this.control("theme", HTMLSelectElement).value = settings.theme;
    this.control("language", HTMLSelectElement).value = settings.language;
    this.control("name", HTMLInputElement).value = settings.name;
  }

  private read(target: EventTarget | null): void {
    if (target instanceof HTMLInputElement && target.type === "range") showValue(target);
    const settings = { ...this.changes.current(), show: this.control("show", HTMLInputElement).checked };
    for (const name of RANGES) settings[name] = Number(this.control(name, HTMLInputElement).value);
    settings.theme = this.control("theme", HTMLSelectElement).value as Settings["theme"];
    settings.language = this.control("language", HTMLSelectElement).value as Settings["language"];
    this.changes.changed(settings);
  }

  private control<T extends Element>(name: string, type: new () => T): T {
    const control = this.form.elements.namedItem(name);
    if (!(control instanceof type)) throw new Error(`no ${name} in the settings`);
    return control;
  }
}

/** A click beside a dialog closes it. */
export function closeOnBackdrop(dialog: HTMLDialogElement): void {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}

function showValue(range: HTMLInputElement): void {
  const output = range.nextElementSibling;
  if (output) output.textContent = `${Math.round(Number(range.value) * 100)}%`;
}
