import assert from "node:assert/strict";
import { test } from "node:test";
import { readGift, readLike, writeGift, writeLike } from "../page/gifts.js";
import { type Flight, FlyingLanes, StandingLanes } from "../page/lanes.js";
import { errorText } from "../page/text.js";

test("bullets of one lane never touch, whatever their widths and speeds", () => {
  const stage = 900;
  let seed = 5;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  const lanes = new FlyingLanes();
  const flights: (Flight & { lane: number })[] = [];
  for (let now = 0; now < 60_000; now += 40) {
    const width = 30 + random() * 800;
    const flight = { startMs: now, width, durationMs: ((stage + width) / (100 + random() * 200)) * 1000 };
    const lane = lanes.place(flight, 6, stage);
    if (lane !== undefined) flights.push({ ...flight, lane });
  }
  assert.ok(flights.length > 50 && flights.every((f) => f.lane < 6));
  const left = (f: Flight, at: number) => stage - ((stage + f.width) * (at - f.startMs)) / f.durationMs;
  for (let at = 0; at < 60_000; at += 200) {
    for (let lane = 0; lane < 6; lane += 1) {
      const there = flights.filter((f) => f.lane === lane && at >= f.startMs && at < f.startMs + f.durationMs).sort((a, b) => left(a, at) - left(b, at));
      there.forEach((f, i) => {
        const next = there[i + 1];
        if (next && left(next, at) < stage) assert.ok(left(f, at) + f.width <= left(next, at) + 0.001, `lane ${lane} at ${at}`);
      });
    }
  }
});

test("a standing lane is taken until its time is over", () => {
  const lanes = new StandingLanes();
  assert.deepEqual([lanes.place(0, 4_000, 2), lanes.place(1, 4_000, 2), lanes.place(2, 4_000, 2), lanes.place(4_000, 4_000, 2)], [0, 1, undefined, 0]);
});

test("likes and gifts of others are read with suspicion", () => {
  assert.equal(readLike(writeLike(3)), 3);
  assert.deepEqual(readGift(writeGift("rose")), { gift: "rose", count: 1 });
  assert.equal(readLike('{"count":1e9}'), 99);
  for (const bad of ["", "3", "null", '{"count":-1}', '{"count":"9"}', '{"count":0.5}']) assert.equal(readLike(bad), undefined, bad);
  for (const bad of ['{"gift":"toString","count":1}', '{"gift":"rose"}', '{"gift":["rose"],"count":1}']) assert.equal(readGift(bad), undefined, bad);
});

test("an error says what happened and what to do, in the viewer's language", () => {
  assert.equal(errorText("TOO_FAST", 3, "en"), "You are sending too fast. Try again in 3 s.");
  assert.equal(errorText("TOO_FAST", 3, "zh"), "你发得太快了，休息一下吧。请 3 秒后再试。");
  assert.match(errorText("MUTED", 0, "en"), /muted/);
});
