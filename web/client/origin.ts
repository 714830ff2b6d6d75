/**
 * Why a page's WebSocket was refused. A browser tells a page nothing but a dropped connection. Where the same server
 * answers HTTP, the server is there, and most likely refuses pages of this origin.
 */

import { BarrageError } from "./error.js";

/** A refused page comes back no sooner, milliseconds: somebody has to change the server's settings first. */
const REFUSED_RETRY_MS = 30_000;

/** What is asked of a browser; another one in tests. */
export interface Browser {
  /** The page's origin, as `https://live.example`. */
  readonly origin: string;
  /** Whether an HTTP server answers at `url`, whatever it says. */
  reaches(url: string): Promise<boolean>;
}

/** The browser that this runs in, if it is one. */
export function thisBrowser(): Browser | undefined {
  const { location } = globalThis as { location?: { origin?: string } };
  if (!location?.origin?.startsWith("http") || typeof fetch !== "function") return undefined;
  return {
    origin: location.origin,
    // Its answer cannot be read, and need not be.
    reaches: (url) => fetch(url, { mode: "no-cors", cache: "no-store" }).then(() => true, () => false),
  };
}

/** The error of a WebSocket at `url` that never opened. */
export async function errorOfHandshake(browser: Browser, url: string): Promise<BarrageError> {
  if (await browser.reaches(url.replace(/^ws/, "http"))) {
    const why = `${url} answers HTTP and refuses the WebSocket: the server's connector.origins and logic.origins must list ${browser.origin}`;
    return new BarrageError("FORBIDDEN", why, true, REFUSED_RETRY_MS, "server");
  }
  return new BarrageError("UNREACHABLE", `no connection to ${url}`, true);
}
