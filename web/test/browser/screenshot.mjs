// The README's picture, of a real run: `BARRAGE_BIN=target/debug/barrage node test/browser/screenshot.mjs FILE`.
// Five viewers in five pages, and the platform by goim's push; what the fifth sees.
import { startServer } from "../server.mjs";
import { launch, say, viewer } from "./chromium.mjs";

const ROOM = "1000";
const SAID = [
  ["Mika", "good evening everyone!"],
  ["小林", "前方高能预警！"],
  ["Noor", "what a view"],
  ["橘子汽水", "这个画面太美了"],
  ["Mika", "the aurora!!"],
  ["小林", "哈哈哈哈哈哈"],
  ["Noor", "greetings from Lisbon"],
  ["橘子汽水", "主播晚上好～"],
  ["Mika", "is it always this calm?"],
  ["小林", "从上海来的"],
  ["Noor", "first time here"],
  ["橘子汽水", "弹幕护体"],
];

const server = await startServer();
const browser = await launch();
const size = { viewport: { width: 1200, height: 720 }, colorScheme: "dark" };
const names = [...new Set(SAID.map(([name]) => name))];
const pages = new Map();
for (const name of names) pages.set(name, await viewer(browser, server.address, { room: ROOM, name, reducedMotion: "reduce" }));
const watching = await viewer(browser, server.address, { room: ROOM, name: "Ada", ...size });
await watching.locator("#online", { hasText: String(names.length + 1) }).waitFor();

names.forEach((name, i) => void pages.get(name).evaluate((n) => document.querySelectorAll("[name=colour]")[n].click(), [3, 0, 5, 7][i]));
await server.push(ROOM, "Welcome! Be kind to each other.");
for (let round = 0; round < 2; round += 1) {
  for (const [name, text] of SAID) {
    await say(pages.get(name), text);
    await new Promise((resolve) => setTimeout(resolve, 180));
  }
}
await pages.get("Noor").click("[data-gift=rocket]");
await say(watching, "hello from here");
await pages.get("Mika").evaluate(() => {
  for (let i = 0; i < 8; i += 1) document.querySelector("#like").click();
});
await watching.locator(".heart").first().waitFor();
await new Promise((resolve) => setTimeout(resolve, 400));
await watching.screenshot({ path: process.argv[2] });
await browser.close();
await server.stop();
