import assert from "node:assert/strict";
import { test } from "node:test";
import { SERVER_ERROR_CODES, codeOf } from "../client/error.js";
import { decode, encode } from "../client/frame.js";

test("a message is read whole, defaults filled in", () => {
  const text = JSON.stringify({
    message: {
      channel: "room:1", id: "x", offset: "18446744073709551615", timeMs: "1700000000000", type: "custom",
      data: "/wCA", style: { colour: 255 }, lane: "LANE_HIGH", later: true,
    },
  });
  assert.deepEqual(decode(text), {
    request: 0,
    body: {
      kind: "message",
      message: {
        channel: "room:1", id: "x", offset: 18446744073709551615n, timeMs: 1700000000000, type: "custom",
        data: new Uint8Array([255, 0, 128]), style: { mode: 0, size: 0, colour: 255 }, lane: "high",
      },
    },
  });
  const empty = decode('{"message":{"channel":"all"}}');
  assert.ok(empty?.body.kind === "message" && empty.body.message.text === "" && empty.body.message.offset === 0n);
});

test("64-bit numbers go out as strings and bytes as base64", () => {
  const resume = { log: "L", normal: 9007199254740993n, high: 0n };
  assert.equal(
    encode(3, { subscribe: { channel: "room:1", resume } }),
    '{"request":3,"subscribe":{"channel":"room:1","resume":{"log":"L","normal":"9007199254740993","high":"0"}}}',
  );
  const publish = { channel: "room:1", clientMessageId: "c", type: "image", data: new Uint8Array([255, 0, 128]) };
  assert.equal(JSON.parse(encode(4, { publish })).publish.data, "/wCA");
});

test("half of a surrogate pair goes out as U+FFFD, in every text of a request", () => {
  const cut = "ok \u{1F600}".slice(0, -1);
  const publish = { channel: "room:1", clientMessageId: `c${cut}`, type: "text", text: `${cut}\uDE00\uD83D whole \u{1F600}` };
  const text = encode(5, { publish });
  assert.doesNotMatch(text, /\\ud[89a-f]/i, "JSON.stringify writes an escape for half a pair");
  assert.equal(JSON.parse(text).publish.clientMessageId, "cok \uFFFD");
  // The cut half and the \uDE00 behind it make a whole pair again, which is kept.
  assert.equal(JSON.parse(text).publish.text, "ok \u{1F600}\uFFFD whole \u{1F600}");
  assert.equal(JSON.parse(encode(6, { connect: { name: "\uDC00" } })).connect.name, "\uFFFD");
});

test("codes are read by name and by number, and a newer one is no crash", () => {
  assert.equal(codeOf("ERROR_CODE_TOO_FAST"), "TOO_FAST");
  SERVER_ERROR_CODES.forEach((code, number) => assert.equal(codeOf(number), code));
  assert.equal(codeOf("ERROR_CODE_OF_TOMORROW"), "INTERNAL");
  assert.equal(codeOf(undefined), "NONE");
});

test("numbers of the wrong shape are zero, not a crash", () => {
  const frame = decode('{"request":"7","pong":{"online":[{"channel":"room:1","sessions":"abc"},5],"timeMs":{}}}');
  assert.deepEqual(frame, { request: 7, body: { kind: "pong", online: [{ channel: "room:1", sessions: 0 }], timeMs: 0 } });
});
