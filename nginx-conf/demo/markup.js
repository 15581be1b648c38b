// Comment markup to DOM, by whitelist.
//
// The worker has cleaned it already. It is still text from strangers, so it is rebuilt element by element from what is
// known to be harmless, and never assigned to innerHTML.

const ALLOWED = new Set(["A", "B", "BLOCKQUOTE", "BR", "CODE", "EM", "I", "P", "PRE", "STRONG"]);
const BLOCK = new Set(["BLOCKQUOTE", "P", "PRE"]);
const LINK = /^(https?:|mailto:)/i;

/** The markup as nodes that are safe to put into the page. */
export function fromMarkup(html) {
  // A document made by DOMParser runs no script and loads nothing.
  const parsed = new DOMParser().parseFromString(html, "text/html");
  const safe = document.createDocumentFragment();
  copyChildren(parsed.body, safe);
  return safe;
}

function copyChildren(from, to) {
  for (const node of from.childNodes) {
    if (node.nodeType === Node.TEXT_NODE) {
      to.append(withoutBlankLines(node));
    } else if (node.nodeType === Node.ELEMENT_NODE) {
      to.append(copyElement(node));
    }
  }
}

/** Line ends in a comment count, but not those around a block: that begins a line of its own anyway. */
function withoutBlankLines(text) {
  const start = BLOCK.has(text.previousSibling?.nodeName) ? text.data.trimStart() : text.data;
  return BLOCK.has(text.nextSibling?.nodeName) ? start.trimEnd() : start;
}

function copyElement(element) {
  const copy = ALLOWED.has(element.tagName) ? document.createElement(element.tagName) : document.createDocumentFragment();
  if (element.tagName === "A" && LINK.test(element.getAttribute("href") ?? "")) {
    copy.href = element.getAttribute("href");
    copy.rel = "nofollow ugc noopener noreferrer";
    copy.target = "_blank";
  }
  if (element.tagName !== "SCRIPT" && element.tagName !== "STYLE") copyChildren(element, copy);
  return copy;
}
