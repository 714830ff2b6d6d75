import assert from "node:assert/strict";
import { test } from "node:test";
import { BACKOFF, Backoff } from "../client/backoff.js";

test("every wait lies within its bounds", () => {
  for (const random of [0, 0.25, 0.999999]) {
    const backoff = new Backoff(BACKOFF, () => random);
    for (let attempt = 0; attempt < 40; attempt += 1) {
      const full = Math.min(BACKOFF.maxMs, BACKOFF.baseMs * BACKOFF.factor ** attempt);
      const wait = backoff.next();
      assert.ok(wait <= full && wait >= full * (1 - BACKOFF.jitter), `${wait} of ${full}`);
    }
  }
});

test("what the server asks for is the least, with jitter on top", () => {
  for (const random of [0, 0.5, 0.999999]) {
    const wait = new Backoff(BACKOFF, () => random).next(10_000);
    assert.ok(wait > 10_000 && wait <= 15_000, String(wait));
  }
});
