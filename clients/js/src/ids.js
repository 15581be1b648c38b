import { isNumber } from "./parser.js";

/**
 * Is event id `a` not above `b`? False where the two have no order: ordered ids are numbers of up to 20 digits, joined by "-".
 * @param {string} a
 * @param {string} b
 */
export function notAbove(a, b) {
  // Nothing is above, below or equal to NaN.
  return sortable(a) <= sortable(b);
}

/** @param {string} id */
function sortable(id) {
  const groups = id.split("-");
  return groups.every(isNumber) ? groups.map((group) => group.padStart(20, "0")).join("-") : NaN;
}
