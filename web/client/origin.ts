/**
 * Why a page's WebSocket was refused. A browser tells a page nothing but a dropped connection. Where the connector itself
 * answers a plain request by asking for an upgrade (426, which a page of any origin may read), it is there and has room, and
 * so refuses pages of this origin. A proxy's answer in its place cannot be read.
 */

import { BarrageError } from "./error.js";

/** A refused page comes back no sooner, milliseconds, and each time later: somebody has to change the server's settings. */
const REFUSED_RETRY_MS = 30_000;
const REFUSED_RETRY_MS_MAX = 600_000;

/** What is asked of a browser; another one in tests. */
export interface Browser {
  /** The page's origin, as `https://live.example`. */
  readonly origin: string;
  /** Whether a connector answers at `url`. */
  reaches(url: string): Promise<boolean>;
}

/** The browser that this runs in, if it is one. */
export function thisBrowser(): Browser | undefined {
  const { location } = globalThis as { location?: { origin?: string } };
  if (!location?.origin?.startsWith("http") || typeof fetch !== "function") return undefined;
  return {
    origin: location.origin,
    reaches: (url) => fetch(url, { cache: "no-store" }).then(({ status }) => status === 426, () => false),
  };
}

/** The error of a WebSocket at `url` that never opened; `before`: how often it was refused before. */
export async function errorOfHandshake(browser: Browser, url: string, before: number): Promise<BarrageError> {
  if (await browser.reaches(url.replace(/^ws/, "http"))) {
    const why = `${url} refuses pages of this origin: the server's connector.origins and logic.origins must list ${browser.origin}`;
    return new BarrageError("FORBIDDEN", why, true, Math.min(REFUSED_RETRY_MS * 2 ** before, REFUSED_RETRY_MS_MAX), "server");
  }
  return new BarrageError("UNREACHABLE", `no connection to ${url}`, true);
}
