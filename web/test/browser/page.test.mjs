// The page in a real browser, against the server of ../server.mjs.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { startServer } from "../server.mjs";
import { chatUntil, connected, isThere, launch, say, viewer } from "./chromium.mjs";

const skip = isThere ? false : "no Chromium here";
const MARKUP = "<img src=x onerror=\"document.title='owned'\">";
/** Until an online number is right: it is some seconds old, and asked for every five. */
const ONLINE_MS = 30_000;
let server;
let browser;
const errors = [];

before(async () => {
  if (!isThere) return;
  server = await startServer();
  browser = await launch();
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

/** Two viewers of a room of their own. */
async function pair(room, options = {}) {
  const [ada, mika] = await Promise.all([
    viewer(browser, server.address, { room, name: "Ada", errors, ...options }),
    viewer(browser, server.address, { room, name: "Mika", errors, ...options }),
  ]);
  return { ada, mika, close: () => Promise.all([ada.context().close(), mika.context().close()]) };
}

test("what one says flies over the other's picture, and markup is text", { skip }, async () => {
  const { ada, mika, close } = await pair("flying");
  await say(ada, MARKUP);
  const bullet = mika.locator(".bullet", { hasText: "<img" });
  await bullet.waitFor({ timeout: 10_000 });
  // Both looks are taken inside the page, so that what the test itself takes is not counted.
  const [from, to, stage] = await bullet.evaluate(async (element) => {
    const look = () => ({ left: element.getBoundingClientRect().left, at: performance.now() });
    const first = look();
    const second = await new Promise((resolve) => setTimeout(() => resolve(look()), 900));
    const { left, right } = document.querySelector("#stage").getBoundingClientRect();
    return [first, second, { left, right }];
  });
  const movedInOneSecond = ((from.left - to.left) * 1000) / (to.at - from.at);
  assert.ok(movedInOneSecond >= 100, `moved ${movedInOneSecond} px to the left in a second`);
  assert.ok(from.left <= stage.right + 1 && to.left < stage.right, "over the picture");
  assert.equal(await bullet.textContent(), MARKUP);
  const lines = await chatUntil(mika, (all) => all.includes(MARKUP), "the line");
  assert.equal(lines.length, 1);
  for (const page of [ada, mika]) {
    assert.equal(await page.locator("#bullets img, #chat img, #banners img").count(), 0);
    assert.notEqual(await page.title(), "owned");
  }
  await close();
});

test("who joins sees how many watch and what was said", { skip }, async () => {
  const first = await viewer(browser, server.address, { room: "joining", name: "Ada", errors });
  for (const text of ["one", "two", "three"]) {
    await say(first, text);
    await chatUntil(first, (lines) => lines.at(-1) === text, text);
  }
  const second = await viewer(browser, server.address, { room: "joining", name: "Mika", errors });
  assert.deepEqual(await chatUntil(second, (lines) => lines.length >= 3, "history"), ["one", "two", "three"]);
  assert.equal(await second.locator(".bullet").count(), 0, "history does not fly");
  for (const page of [first, second]) await page.locator("#online", { hasText: /^2$/ }).waitFor({ timeout: ONLINE_MS });
  await first.context().close();
  await second.locator("#online", { hasText: /^1$/ }).waitFor({ timeout: ONLINE_MS });
  await second.context().close();
});

test("likes and gifts reach the others", { skip }, async () => {
  const { ada, mika, close } = await pair("gifts");
  for (let i = 0; i < 3; i += 1) await ada.click("#like");
  await mika.locator("#likes", { hasText: /^3$/ }).waitFor({ timeout: 10_000 });
  await ada.click("[data-gift=rocket]");
  await mika.locator("#banners li", { hasText: "gave a rocket" }).waitFor({ timeout: 10_000 });
  await chatUntil(mika, (lines) => lines.includes("gave a rocket"), "the gift");
  await close();
});

test("rooms are apart, and one can go from one to the other", { skip }, async () => {
  const { ada, mika, close } = await pair("here");
  await mika.click("#room");
  await mika.fill("#room-id", "there");
  await mika.press("#room-id", "Enter");
  await mika.locator("#room-name", { hasText: "Room there" }).waitFor();
  assert.match(mika.url(), /room=there/);
  await say(ada, "only here");
  await chatUntil(ada, (lines) => lines.includes("only here"), "own line");
  await server.push("there", "only there");
  assert.deepEqual(await chatUntil(mika, (lines) => lines.length > 0, "the other room"), ["only there"]);
  await mika.goBack();
  await chatUntil(mika, (lines) => lines.includes("only here"), "history of the first room");
  await close();
});

test("after the server was killed and started again nothing is lost and nothing comes twice", { skip }, async () => {
  const { ada, mika, close } = await pair("restart");
  const expected = [];
  const send = async (text) => {
    await server.push("restart", text);
    expected.push(text);
  };
  for (let i = 0; i < 5; i += 1) await send(`before ${i}`);
  await chatUntil(mika, (lines) => lines.length === 5, "before");
  await server.kill();
  await mika.waitForSelector('#state:not([data-state="connected"])');
  await server.start();
  for (let i = 0; i < 5; i += 1) await send(`meanwhile ${i}`);
  await Promise.all([connected(ada), connected(mika)]);
  for (let i = 0; i < 5; i += 1) await send(`after ${i}`);
  for (const page of [ada, mika]) {
    assert.deepEqual(await chatUntil(page, (lines) => lines.length >= expected.length, "all of them"), expected);
    assert.equal(await page.locator("#chat .note", { hasText: "went by" }).count(), 0, "no gap");
  }
  await close();
});

test("who sends too fast is told so in words, and keeps the text", { skip }, async () => {
  const page = await viewer(browser, server.address, { room: "hasty", name: "Ada", errors });
  await page.evaluate(() => {
    const box = document.querySelector("#say");
    for (let i = 0; i < 60; i += 1) {
      box.value = `fast ${i}`;
      document.querySelector("#composer").requestSubmit();
    }
  });
  const notice = page.locator("#notice", { hasText: "You are sending too fast." });
  await notice.waitFor({ timeout: 15_000 });
  assert.equal(await notice.getAttribute("role"), "alert");
  assert.match(await page.inputValue("#say"), /^fast \d+$/);
  await page.context().close();
});

test("a phone shows all of it, without scrolling sideways", { skip }, async () => {
  for (const width of [320, 390]) {
    const page = await viewer(browser, server.address, {
      room: "phone", name: "Ada", errors, locale: "zh-CN", viewport: { width, height: 720 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2,
    });
    await server.push("phone", "wide".repeat(200));
    await chatUntil(page, (lines) => lines.length > 0, "the wide line");
    assert.equal(await page.locator("html").getAttribute("lang"), "zh-CN");
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${width}: scrolls sideways`);
    for (const id of ["say", "send", "like", "room", "settings-open", "stage"]) {
      const box = await page.locator(`#${id}`).boundingBox();
      assert.ok(box && box.x >= 0 && box.x + box.width <= width && box.y + box.height <= 720, `${width}: #${id} at ${JSON.stringify(box)}`);
    }
    await page.context().close();
  }
});

test("settings last, light and dark", { skip }, async () => {
  const page = await viewer(browser, server.address, { room: "settings", name: "Ada", errors, colorScheme: "light" });
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await background();
  await page.click("#theme");
  const dark = await background();
  assert.notEqual(light, dark);
  await page.click("#settings-open");
  await page.locator("[name=opacity]").fill("0.5");
  await page.locator("[name=language]").selectOption("zh");
  await page.keyboard.press("Escape");
  await page.reload();
  await connected(page);
  assert.equal(await background(), dark);
  assert.equal(await page.locator("#bullets").evaluate((layer) => layer.style.opacity), "0.5");
  assert.equal(await page.locator("#say").getAttribute("placeholder"), "发条弹幕吧");
  await page.click("#bullets-toggle");
  await server.push("settings", "unseen");
  await chatUntil(page, (lines) => lines.includes("unseen"), "the line");
  assert.equal(await page.locator(".bullet").count(), 0);
  await page.context().close();
});

test("who wants less motion sees bullets stand", { skip }, async () => {
  const page = await viewer(browser, server.address, { room: "still", name: "Ada", errors, reducedMotion: "reduce" });
  await server.push("still", "calm");
  const bullet = page.locator(".bullet", { hasText: "calm" });
  await bullet.waitFor({ timeout: 10_000 });
  const [first, second] = await bullet.evaluate(async (element) => {
    const { left } = element.getBoundingClientRect();
    return [left, await new Promise((resolve) => setTimeout(() => resolve(element.getBoundingClientRect().left), 300))];
  });
  assert.equal(first, second);
  await page.context().close();
});

test("a pasted token is who one is, and one that is refused is explained", { skip }, async (t) => {
  if (!server.isReal) {
    t.diagnostic("the fake server knows no tokens");
    return;
  }
  const page = await viewer(browser, server.address, { room: "identity", name: "Ada", errors });
  const paste = async (token) => {
    await page.click("#settings-open");
    await page.fill("#settings [name=token]", token);
    await page.click("#identity-apply");
  };
  await paste(await server.token("42"));
  await page.locator("#who", { hasText: /^You are (?!.*guest)/ }).waitFor({ state: "attached", timeout: 10_000 });
  await connected(page);
  await say(page, "as 42");
  await chatUntil(page, (lines) => lines.includes("as 42"), "own line");
  assert.equal(await page.locator("#chat .own").count(), 1);
  await paste("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl");
  await page.waitForSelector('#state[data-state="closed"]', { timeout: 10_000 });
  await page.locator("#notice", { hasText: "You need to sign in" }).waitFor();
  assert.ok(!page.url().includes("eyJ"), "no token in an address");
  await page.context().close();
});

test("who is banned from a room sees so, and is in it again when the ban ends", { skip }, async (t) => {
  if (!server.isReal) {
    t.diagnostic("the fake server knows no bans");
    return;
  }
  const page = await viewer(browser, server.address, { room: "banned", name: "Ada", errors });
  await page.click("#settings-open");
  await page.fill("#settings [name=token]", await server.token("77"));
  await page.click("#identity-apply");
  await page.locator("#who", { hasText: /^You are (?!.*guest)/ }).waitFor({ state: "attached", timeout: 10_000 });
  await connected(page);
  await say(page, "before");
  await chatUntil(page, (lines) => lines.includes("before"), "own line");
  const ban = await fetch(`${server.address}v1/penalties`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ uid: "77", room: "banned", kind: "ban", seconds: 5 }),
  });
  assert.equal(ban.status, 200);
  await page.waitForSelector('#state[data-state="out"]', { timeout: 10_000 });
  await page.locator("#notice", { hasText: /banned.*Try again in \d s/ }).waitFor();
  await connected(page);
  assert.equal(await page.locator("#notice").isVisible(), false);
  await say(page, "after");
  await chatUntil(page, (lines) => lines.includes("after"), "own line after the ban");
  await page.context().close();
});

test("a page of an origin that the connector refuses is told which setting must list it", { skip }, async (t) => {
  if (!server.isReal) {
    t.diagnostic("the fake server refuses nobody");
    return;
  }
  const other = await startServer({ BARRAGE_CONNECTOR__ORIGINS: '["http://elsewhere.example"]' });
  try {
    const context = await browser.newContext({ locale: "en-GB" });
    const page = await context.newPage();
    await page.goto(other.address);
    await page.locator("#notice", { hasText: `connector.origins must list ${new URL(other.address).origin}` }).waitFor();
    assert.equal(await page.getAttribute("#state", "data-state"), "waiting");
    await context.close();
  } finally {
    await other.stop();
  }
});

test("a flood leaves the page as large as it was", { skip }, async () => {
  const page = await viewer(browser, server.address, { room: "flood", name: "Ada", errors });
  let most = 0;
  for (let i = 0; i < 400; i += 20) {
    await Promise.all(Array.from({ length: 20 }, (_, k) => server.push("flood", `flood ${i + k}`)));
    most = Math.max(most, await page.locator(".bullet").count());
  }
  const lines = await chatUntil(page, (all) => all.length > 150, "a full list");
  assert.ok(lines.length <= 200, `${lines.length} lines`);
  assert.ok(most > 0 && most <= 160, `${most} bullets`);
  await page.context().close();
});

test("no page reported an error", { skip }, () => {
  assert.deepEqual(errors, []);
});
