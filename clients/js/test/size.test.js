import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

test("the client is at most 4 kB, compressed", (context) => {
  const bytes = gzipSync(readFileSync(new URL("../dist/index.js", import.meta.url)), { level: 9 }).length;
  context.diagnostic(`${bytes} bytes`);
  assert.ok(bytes <= 4096, `${bytes} bytes`);
});

test("the parser has no regular expression, and nothing is imported from elsewhere", () => {
  for (const file of ["parser", "transports", "ids", "index", "pushstream"]) {
    const source = readFileSync(new URL(`../src/${file}.js`, import.meta.url), "utf8");
    assert.doesNotMatch(source, /RegExp|\.match\(|\.exec\(|[=(,:&|] ?\/[^/*\s]/, file);
    for (const [, from] of source.matchAll(/from "([^"]+)"/g)) assert.match(from, /^\.\//, file);
  }
});
