import assert from "node:assert/strict";
import { test } from "node:test";

import { notAbove } from "../src/ids.js";

test("ordered ids are compared group by group, as numbers", () => {
  for (const [a, b] of [["1", "2"], ["9", "10"], ["1-5", "1-5-1"], ["1-9", "1-10"], ["1795325070123-1", "1795325070123-2"], ["18446744073709551614", "18446744073709551615"]]) {
    assert.equal(notAbove(a, b), true, `${a} ${b}`);
    assert.equal(notAbove(b, a), false, `${b} ${a}`);
    assert.equal(notAbove(a, a), true, a);
  }
});

test("other ids have no order", () => {
  for (const [a, b] of [["a", "b"], ["", "1"], ["1", ""], ["1-", "2"], ["0x1", "0x2"], [" 1", "2"], ["-1", "1"]]) assert.equal(notAbove(a, b), false, `${a} ${b}`);
});
