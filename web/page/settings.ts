/** What a viewer has set. Looks and danmaku are kept (localStorage), the token for the tab's life (sessionStorage). */

import type { Language } from "./text.js";

export interface Settings {
  show: boolean;
  /** 0.1–1: the part of the bullets that may be on screen at once. */
  density: number;
  /** 0.5–2 times the usual. */
  speed: number;
  /** 0.2–1. */
  opacity: number;
  /** 0.25–1: the part of the picture, from the top, that bullets cross. */
  area: number;
  /** 0.7–1.5 times the usual. */
  size: number;
  theme: "system" | "light" | "dark";
  language: "auto" | Language;
  /** The name as a guest. */
  name: string;
  /** Rooms entered, the last one first. */
  rooms: string[];
}

const DEFAULTS: Settings = {
  show: true,
  density: 0.7,
  speed: 1,
  opacity: 0.95,
  area: 0.75,
  size: 1,
  theme: "system",
  language: "auto",
  name: "",
  rooms: [],
};

const RANGES = { density: [0.1, 1], speed: [0.5, 2], opacity: [0.2, 1], area: [0.25, 1], size: [0.7, 1.5] } as const;
const SETTINGS_KEY = "barrage.settings";
const TOKEN_KEY = "barrage.token";
/** Rooms that are offered again. */
const ROOMS_MAX = 6;

/** What was kept, each value checked: an older page, or a person, may have written it. */
export function loadSettings(): Settings {
  const kept = read();
  const settings: Settings = { ...DEFAULTS };
  if (typeof kept.show === "boolean") settings.show = kept.show;
  for (const key of ["density", "speed", "opacity", "area", "size"] as const) {
    const value = kept[key];
    const [least, most] = RANGES[key];
    if (typeof value === "number" && value >= least && value <= most) settings[key] = value;
  }
  if (kept.theme === "light" || kept.theme === "dark") settings.theme = kept.theme;
  if (kept.language === "en" || kept.language === "zh") settings.language = kept.language;
  if (typeof kept.name === "string") settings.name = kept.name.slice(0, 32);
  if (Array.isArray(kept.rooms)) settings.rooms = kept.rooms.filter(isRoomId).slice(0, ROOMS_MAX);
  return settings;
}

export function saveSettings(settings: Settings): void {
  try {
    localStorage.setItem(SETTINGS_KEY, JSON.stringify(settings));
  } catch {
    // Storage is refused (a private window): the settings last as long as the page.
  }
}

export function withRoom(settings: Settings, room: string): Settings {
  return { ...settings, rooms: [room, ...settings.rooms.filter((r) => r !== room)].slice(0, ROOMS_MAX) };
}

export function loadToken(): string {
  try {
    return sessionStorage.getItem(TOKEN_KEY) ?? "";
  } catch {
    return "";
  }
}

export function saveToken(token: string): void {
  try {
    if (token) sessionStorage.setItem(TOKEN_KEY, token);
    else sessionStorage.removeItem(TOKEN_KEY);
  } catch {
    // as above
  }
}

/** The server's rule for IDs (`proto::channel::is_id`). */
export function isRoomId(value: unknown): value is string {
  return typeof value === "string" && /^[A-Za-z0-9_.-]{1,64}$/.test(value);
}

function read(): Partial<Record<keyof Settings, unknown>> {
  try {
    const kept: unknown = JSON.parse(localStorage.getItem(SETTINGS_KEY) ?? "{}");
    return typeof kept === "object" && kept !== null ? kept : {};
  } catch {
    return {};
  }
}
