// The event stream format: the cases of the standard (WHATWG HTML, section 9.2.6), whole and cut at every place.
import assert from "node:assert/strict";
import { test } from "node:test";

import { EventParser } from "../src/parser.js";

/** What a stream dispatches, given in pieces of so many characters. */
function read(stream, size = Infinity) {
  const events = [];
  const retries = [];
  const parser = new EventParser({ event: (...event) => events.push(event), retry: (ms) => retries.push(ms) });
  for (let at = 0; at < stream.length; at += size) parser.push(stream.slice(at, at + size));
  return { events, retries, lastId: parser.lastId };
}

const message = (data, id = "") => ["message", data, id];

/** Name, stream, events; and what else is left. */
const CASES = [
  ["data in several lines, and an empty second event", "data: YHOO\ndata: +2\ndata: 10\n\n", [message("YHOO\n+2\n10")]],
  [
    "the standard's four blocks",
    ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
    [message("first event", "1"), message("second event")],
  ],
  ["data without a value", "data\n\ndata\ndata\n\ndata:", [message(""), message("\n")]],
  ["a space behind the colon or none", "data:test\n\ndata: test\n\n", [message("test"), message("test")]],
  ["only the first space goes", "data:  two\ndata:\ttab\n\n", [message(" two\n\ttab")]],
  ["LF, CR and CRLF", "data:a\ndata:b\rdata:c\r\ndata:d\n\n", [message("a\nb\nc\nd")]],
  ["only CR", "data:a\rdata:b\r\rdata:c\r\r", [message("a\nb"), message("c")]],
  ["only CRLF", "data:a\r\n\r\ndata:b\r\n\r\n", [message("a"), message("b")]],
  ["LF CR is two line ends", "data:a\n\rdata:b\n\r", [message("a"), message("b")]],
  ["a field without a colon is a name", "data\nevent\nid\nretry\n\n", [message("")]],
  ["fields of other names", "data:a\n data:x\nDATA:x\ndata :x\ndatax:x\nfoo\nfoo:x\n:data:x\n\n", [message("a")]],
  ["comments", ":\n:a\n: b\ndata:1\n:" + "x".repeat(2048) + "\ndata:2\n:\n\n", [message("1\n2")]],
  ["an event without data", "event: a\n\ndata: b\n\n", [message("b")]],
  ["its type", "event: note\ndata: a\n\ndata: b\n\nevent:\ndata: c\n\n", [["note", "a", ""], message("b"), message("c")]],
  ["the last type counts", "event: a\nevent: b\ndata: x\n\n", [["b", "x", ""]]],
  ["a type with spaces and a colon", "event:  a:b \ndata: x\n\n", [[" a:b ", "x", ""]]],
  ["an id stays", "id: 1\ndata: a\n\ndata: b\n\n", [message("a", "1"), message("b", "1")], { lastId: "1" }],
  ["an empty id takes it back", "id: 1\ndata: a\n\nid\ndata: b\n\n", [message("a", "1"), message("b")], { lastId: "" }],
  ["an id with NUL is none", "id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n", [message("a", "1"), message("b", "1")], { lastId: "1" }],
  ["an id without data is a position", "id: 7\n\n", [], { lastId: "7" }],
  ["an id of an event that is not finished is none", "id: 7\ndata: a\n", [], { lastId: "" }],
  ["a long id", `id: ${"7".repeat(4096)}\ndata: a\n\n`, [message("a", "7".repeat(4096))]],
  ["an id in other letters", "id: ü… \u{1f600}\ndata: a\n\n", [message("a", "ü… \u{1f600}")]],
  ["the time to come back", "retry: 3000\n\nretry:1\nretry: 007\n", [], { retries: [3000, 1, 7] }],
  ["no time to come back", "retry: 3e3\nretry: 1000x\nretry: -1\nretry:  5\nretry: 5 \nretry: 1.5\nretry\nretry:\nretry: ٣\n\n", [], { retries: [] }],
  ["NUL in data", "data: a\0b\n\0data: c\n\n", [message("a\0b")]],
  ["the end of an event is missing", "data: a\n\ndata: b", [message("a")]],
  ["the last line end is missing", "data: a\n\ndata: b\n", [message("a")]],
  ["empty lines between", "\n\n\ndata: a\n\n\n\ndata: b\n\n", [message("a"), message("b")]],
  ["a byte order mark that is not the first is a letter", "data: a\n\n\ufeffdata: b\n\ndata: c\n\n", [message("a"), message("c")]],
  ["other separators are letters", "data: a\u2028b\u2029c\u0085d\u000be\n\n", [message("a\u2028b\u2029c\u0085d\u000be")]],
  ["values that look like fields", "data: data: x\ndata:: y\n\n", [message("data: x\n: y")]],
];

for (const [name, stream, events, more = {}] of CASES) {
  test(name, () => {
    for (const size of [Infinity, 1, 2, 3, 7]) {
      const got = read(stream, size);
      assert.deepEqual(got.events, events, `in pieces of ${size}`);
      for (const [what, value] of Object.entries(more)) assert.deepEqual(got[what], value, `${what}, in pieces of ${size}`);
    }
  });
}

test("a byte order mark at the beginning is none, and bytes may be cut within a character", () => {
  const bytes = new TextEncoder().encode("\ufeffdata: ü\u{1f600}漢\r\n\r\ndata: b\n\n");
  for (let cut = 0; cut <= bytes.length; cut++) {
    const events = [];
    const parser = new EventParser({ event: (type, data) => events.push(data) });
    const decoder = new TextDecoder();
    for (const piece of [bytes.slice(0, cut), bytes.slice(cut)]) parser.push(decoder.decode(piece, { stream: true }));
    assert.deepEqual(events, ["ü\u{1f600}漢", "b"], `cut at ${cut}`);
  }
});

test("what was the last id before goes on", () => {
  const ids = [];
  const parser = new EventParser({ event: (type, data, id) => ids.push(id) }, "5");
  parser.push("data: a\n\nid: 6\ndata: b\n\n");
  assert.deepEqual(ids, ["5", "6"]);
});

// What one reads that does everything at once, from the standard's grammar.
function readAtOnce(stream) {
  const events = [];
  let [data, type, id, lastId] = ["", "", "", ""];
  for (const line of stream.split(/\r\n|\r|\n/).slice(0, -1)) {
    const [, name, , value] = /^([^:]*)(: ?([^]*))?$/.exec(line);
    if (line === "") {
      lastId = id;
      if (data) events.push([type || "message", data.slice(0, -1), lastId]);
      data = type = "";
    } else if (name === "data") data += `${value ?? ""}\n`;
    else if (name === "event") type = value ?? "";
    else if (name === "id" && !(value ?? "").includes("\0")) id = value ?? "";
  }
  return events;
}

test("any stream, cut anywhere, is read as another implementation reads it", () => {
  const pieces = ["data", "event", "id", "retry", ":", " ", "\n", "\r", "\r\n", "\n\n", "a", "ü", "\0", "1", ": x", "data: "];
  let seed = 1;
  const random = (below) => (seed = (seed * 48271) % 0x7fffffff) % below;
  for (let round = 0; round < 20_000; round++) {
    const stream = Array.from({ length: 1 + random(30) }, () => pieces[random(pieces.length)]).join("");
    // A CR at the end may be half of a CRLF, and ends its line all the same.
    assert.deepEqual(read(stream, 1 + random(9)).events, readAtOnce(stream), JSON.stringify(stream));
  }
});
