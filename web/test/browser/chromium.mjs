// Debian's Chromium, headless, driven by playwright-core: one browser for a test file, a new profile for each page.
import { existsSync } from "node:fs";
import { chromium } from "playwright-core";

export const EXECUTABLE = process.env.CHROMIUM ?? "/usr/bin/chromium";
export const isThere = existsSync(EXECUTABLE);

export function launch() {
  return chromium.launch({
    executablePath: EXECUTABLE,
    headless: true,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
}

/** A viewer's page in a profile of its own, in `room`, connected. Fails the test on any error of the page's. */
export async function viewer(browser, address, { room = "1000", name, errors = [], ...options } = {}) {
  const context = await browser.newContext({ locale: "en-GB", viewport: { width: 1280, height: 800 }, ...options });
  if (name) {
    await context.addInitScript((value) => {
      if (!localStorage.getItem("barrage.settings")) localStorage.setItem("barrage.settings", JSON.stringify({ name: value }));
    }, name);
  }
  const page = await context.newPage();
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => {
    // A policy that the page breaks is told here. A refused connection is too: the tests stop servers.
    if (message.type() === "error" && !message.text().includes("ERR_CONNECTION") && !message.text().includes("WebSocket")) errors.push(message.text());
  });
  await page.goto(`${address}?room=${room}`);
  await connected(page);
  return page;
}

export function connected(page) {
  return page.waitForSelector('#state[data-state="connected"]', { timeout: 15_000 });
}

export async function say(page, text) {
  await page.fill("#say", text);
  await page.press("#say", "Enter");
}

/** The chat list's texts once `condition` holds of them. */
export async function chatUntil(page, condition, what) {
  const deadline = Date.now() + 15_000;
  for (;;) {
    const lines = await page.locator("#chat .line:not(.note) [data-testid=line]").allTextContents();
    if (condition(lines)) return lines;
    if (Date.now() > deadline) throw new Error(`${what}: not within 15 s; the chat list is ${JSON.stringify(lines)}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
