// The comment thread: what is shown, and what is sent.
//
//   read    /sub/CHANNEL        event stream; the last 50 at first, what was missed after a reconnect
//           /recent/CHANNEL     the last 50 as lines, to close what a restart of nginx may have left open
//           /stats/CHANNEL      how many are watching
//   write   POST /comments      to the worker, which publishes to forum.*, thread.* and user.*
//           POST /typing/THREAD straight to nginx, to whoever is there; never stored

import { connect } from "./client/index.js";
import { fromMarkup } from "./markup.js";

const SHOWN_AT_MOST = 500;
const WATCHERS_EVERY_MS = 5_000;
const TYPING_EVERY_MS = 2_500;
const TYPING_SHOWN_MS = 5_000;
const POST_TIMEOUT_MS = 10_000;
const RETRY_MS = 2_000;
const HISTORY_MS = 500;

const $ = (id) => document.getElementById(id);
const view = viewFrom(new URLSearchParams(location.search));
const me = rememberedAuthor();

/** Every comment on the page by its id: what makes a doubled delivery, a replay and our own echo harmless. */
const shown = new Map();
/** Our comments that nobody has confirmed yet: id → {body, sentAt}. */
const unsent = new Map();
/** Who is typing: author id → {name, until}. */
const typists = new Map();
let typingSaidAt = -Infinity;
let live = false;
let wasLiveBefore = false;
/** The history has arrived: from here on a comment is news. */
let settled = false;
let unread = 0;

// ---- Which part of the firehose this page shows --------------------------------------------------------------------

function viewFrom(query) {
  const word = /^[\w-]{1,64}$/;
  for (const kind of ["user", "forum", "thread"]) {
    if (word.test(query.get(kind) ?? "")) return { kind, name: query.get(kind), channel: `${kind}.${query.get(kind)}` };
  }
  return { kind: "thread", name: "welcome", channel: "thread.welcome" };
}

function describeView() {
  if (view.kind === "thread") return;
  $("write").remove();
  $("typing").remove();
  $("title").textContent = view.kind === "forum" ? `Everything in “${view.name}”` : "Everything this author writes";
  $("lead").textContent = "Every comment goes to several channels at once: its thread's, its forum's and its author's. "
    + "This page listens to one of the others. ";
  const back = document.createElement("a");
  back.href = "/";
  back.textContent = "Back to the thread";
  $("lead").append(back);
}

// ---- Who we are ----------------------------------------------------------------------------------------------------

function rememberedAuthor() {
  const read = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const pick = (words) => words[Math.floor(Math.random() * words.length)];
  const author = {
    id: read("author-id") ?? `u-${randomId().slice(0, 12)}`,
    name: read("author-name") ?? `${pick(["Quiet", "Curious", "Brisk", "Sunny", "Patient", "Clever", "Gentle", "Bold"])} `
      + pick(["Heron", "Otter", "Lynx", "Swift", "Badger", "Finch", "Marten", "Seal"]),
  };
  remember("author-id", author.id);
  return author;
}

function remember(key, value) {
  try { localStorage.setItem(key, value); } catch { /* Private windows forget; the page works all the same. */ }
}

// crypto.randomUUID exists only on https and localhost, but a phone opens this by the machine's address.
function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// ---- Reading -------------------------------------------------------------------------------------------------------

function receive(data) {
  let value;
  try { value = JSON.parse(data); } catch { return; }
  if (value?.typing) return receiveTyping(value.typing);
  const comment = commentFrom(value);
  if (comment) showDelivered(comment);
}

/** The comment in a message, or null: nothing that came over the wire is trusted to have a shape. */
function commentFrom(value) {
  if (typeof value?.id !== "string" || typeof value.message !== "string") return null;
  const time = Date.parse(value.created_at ?? "");
  return {
    id: value.id,
    thread: String(value.thread ?? ""),
    author: { id: String(value.author?.id ?? ""), name: nameFrom(value.author?.name) },
    message: value.message,
    time: Number.isFinite(time) ? time : Date.now(),
  };
}

/** The worker took the markup out of names; what is left is still HTML, where "&" is "&amp;". */
function nameFrom(html) {
  return fromMarkup(String(html ?? "")).textContent.trim().slice(0, 40) || "Somebody";
}

function showDelivered(comment) {
  const ours = unsent.get(comment.id);
  if (ours) showTook(performance.now() - ours.sentAt);
  unsent.delete(comment.id);

  const known = shown.get(comment.id);
  if (known && !known.pending) return;
  if (known) known.item.remove();
  const item = render(comment);
  insert(item, comment);
  if (typists.delete(comment.author.id)) showTypists();
  if (settled && !known) greet(item, comment);
  recount();
}

function greet(item, comment) {
  item.classList.add("fresh");
  $("announce").textContent = `New comment by ${comment.author.name}`;
  if ($("comments").getBoundingClientRect().top < 20) {
    unread += 1;
    $("newer").textContent = unread === 1 ? "1 new comment" : `${unread} new comments`;
    $("newer").hidden = false;
  }
}

function insert(item, comment, pending = false) {
  shown.set(comment.id, { item, time: comment.time, pending });
  item.dataset.time = comment.time;
  const newer = [...$("comments").children].find((other) => Number(other.dataset.time) <= comment.time);
  $("comments").insertBefore(item, newer ?? null);
  while (shown.size > SHOWN_AT_MOST) {
    const oldest = $("comments").lastElementChild;
    shown.delete(oldest.dataset.id);
    oldest.remove();
  }
}

function render(comment) {
  const item = $("comment").content.cloneNode(true).firstElementChild;
  const part = (selector) => item.querySelector(selector);
  item.dataset.id = comment.id;
  paintFace(part(".face"), comment.author);
  part(".who").textContent = comment.author.name;
  part(".who").href = `/?user=${encodeURIComponent(comment.author.id)}`;
  part(".where").hidden = view.kind === "thread";
  part(".where").textContent = `in ${comment.thread}`;
  part(".where").href = `/?thread=${encodeURIComponent(comment.thread)}`;
  part("time").dateTime = new Date(comment.time).toISOString();
  part("time").title = new Date(comment.time).toLocaleString();
  part("time").textContent = ago(comment.time);
  part(".text").append(fromMarkup(comment.message));
  return item;
}

function paintFace(face, author) {
  let hash = 0x811c9dc5; // FNV-1a
  for (const char of author.id) hash = Math.imul(hash ^ char.codePointAt(0), 0x01000193) >>> 0;
  face.style.setProperty("--hue", Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d) >>> 0 & 0x1ff);
  face.textContent = author.name.split(/\s+/).slice(0, 2).map((word) => [...word][0] ?? "").join("").toUpperCase();
}

function ago(time) {
  const seconds = Math.max(0, (Date.now() - time) / 1000);
  if (seconds < 45) return "just now";
  const format = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  const steps = [["minute", 60], ["hour", 3600], ["day", 86_400], ["month", 2_629_800], ["year", 31_557_600]];
  const [unit, length] = steps.findLast(([, length]) => seconds >= length) ?? steps[0];
  return format.format(-Math.max(1, Math.round(seconds / length)), unit);
}

function recount() {
  const count = [...shown.values()].filter((comment) => !comment.pending).length;
  $("count").textContent = count >= SHOWN_AT_MOST ? `${count}+` : count;
  $("noun").textContent = count === 1 ? "comment" : "comments";
  $("empty").hidden = shown.size > 0 || !settled;
}

function showTook(ms) {
  $("took").hidden = false;
  $("took").textContent = `${Math.max(1, Math.round(ms))} ms`;
  $("took").title = "From your click to this page, through the worker and nginx";
}

// ---- The connection ------------------------------------------------------------------------------------------------

function connectionIs(state) {
  const wasLive = live;
  live = state === "live";
  $("state").dataset.state = state;
  $("state").textContent = { reconnecting: "reconnecting…", connecting: "connecting…" }[state] ?? state;
  if (!live) return wasLive ? showWatchers(null) : undefined;
  // The history comes with the stream's first bytes; only after it is an empty thread really empty.
  setTimeout(() => { settled = true; recount(); }, HISTORY_MS);
  setTimeout(countWatchers, 200);
  if (wasLiveBefore) catchUp();
  wasLiveBefore = true;
  for (const id of unsent.keys()) if (shown.get(id)?.item.classList.contains("failed")) post(id);
}

/** A restarted nginx does not know our Last-Event-ID any more; whatever it has is shown already or belongs here. */
async function catchUp() {
  try {
    const response = await fetch(`/recent/${view.channel}`, { cache: "no-store" });
    if (response.status === 200) (await response.text()).split("\n").forEach(receive);
  } catch { /* The stream notices as well, and comes back here. */ }
}

async function countWatchers() {
  if (!live || document.hidden) return;
  try {
    const response = await fetch(`/stats/${view.channel}`, { cache: "no-store" });
    if (response.ok) showWatchers((await response.json()).subscribers);
  } catch { /* Next time. */ }
}

function showWatchers(count) {
  $("watching").hidden = !count;
  $("watching").dataset.count = count ?? 0;
  $("watchers").textContent = count === 1 ? "only you are watching" : `${count} people watching`;
}

// ---- Writing -------------------------------------------------------------------------------------------------------

function submit(event) {
  event.preventDefault();
  const message = $("message").value.trim();
  const name = $("name").value.trim();
  if (!message || !name) return;
  const comment = { id: randomId(), forum: "demo", thread: view.name, author: { ...me, name }, message };
  unsent.set(comment.id, { body: JSON.stringify(comment), sentAt: performance.now() });
  const item = render({ ...comment, time: Date.now() });
  item.querySelector(".again").addEventListener("click", () => post(comment.id));
  insert(item, { ...comment, time: Date.now() }, true);
  $("message").value = "";
  measureMessage();
  typingSaidAt = -Infinity;
  post(comment.id);
}

/** Sends one of our comments, again if need be: its id makes a repetition harmless. */
async function post(id) {
  const { item } = shown.get(id);
  item.classList.remove("failed");
  item.classList.add("pending");
  item.querySelector(".note").hidden = true;
  try {
    const response = await fetch("/comments", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: unsent.get(id).body,
      signal: AbortSignal.timeout(POST_TIMEOUT_MS),
    });
    if (!response.ok) throw new Refused(response.status);
  } catch (error) {
    if (unsent.has(id)) postFailed(id, error);
  }
}

class Refused extends Error {
  constructor(status) {
    super(`refused with ${status}`);
    this.final = status >= 400 && status < 500 && status !== 408 && status !== 429;
  }
}

function postFailed(id, error) {
  const { item } = shown.get(id);
  const note = item.querySelector(".note");
  item.classList.replace("pending", "failed");
  note.querySelector("span").textContent = error.final ? "Not accepted." : "Not sent yet.";
  note.hidden = false;
  if (!error.final) setTimeout(() => unsent.has(id) && item.classList.contains("failed") && post(id), RETRY_MS);
}

function measureMessage() {
  const box = $("message");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
  const left = box.maxLength - box.value.length;
  $("left").textContent = left < 200 ? `${left} left` : "";
}

// ---- Who is typing -------------------------------------------------------------------------------------------------

function sayTyping() {
  const now = performance.now();
  if (!live || !$("message").value || now - typingSaidAt < TYPING_EVERY_MS) return;
  typingSaidAt = now;
  const body = JSON.stringify({ typing: { id: me.id, name: $("name").value.trim() } });
  fetch(`/typing/${view.name}`, { method: "POST", body }).catch(() => {});
}

function receiveTyping(typing) {
  const id = String(typing.id ?? "");
  if (!id || id === me.id || view.kind !== "thread") return;
  typists.set(id, { name: String(typing.name ?? "").slice(0, 40) || "Somebody", until: Date.now() + TYPING_SHOWN_MS });
  showTypists();
  setTimeout(showTypists, TYPING_SHOWN_MS + 50);
}

function showTypists() {
  for (const [id, { until }] of typists) if (until < Date.now()) typists.delete(id);
  const names = [...typists.values()].map(({ name }) => name);
  const text = names.length > 2 ? `${names.length} people are writing`
    : names.length ? `${names.join(" and ")} ${names.length === 1 ? "is" : "are"} writing` : "";
  $("typing").textContent = text;
  $("typing").classList.toggle("on", names.length > 0);
}

// ---- Start ---------------------------------------------------------------------------------------------------------

describeView();
if (view.kind === "thread") {
  $("name").value = me.name;
  paintFace($("face"), me);
  $("write").addEventListener("submit", submit);
  $("message").addEventListener("input", () => { measureMessage(); sayTyping(); });
  $("message").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("write").requestSubmit();
  });
  $("name").addEventListener("input", () => {
    me.name = $("name").value.trim() || me.name;
    paintFace($("face"), me);
    remember("author-name", me.name);
  });
}
$("newer").addEventListener("click", () => $("heading").scrollIntoView({ behavior: "smooth" }));
addEventListener("scroll", () => {
  if ($("comments").getBoundingClientRect().top < 20) return;
  unread = 0;
  $("newer").hidden = true;
}, { passive: true });
document.addEventListener("visibilitychange", countWatchers);

connectionIs(navigator.onLine ? "connecting" : "offline");
const stream = connect("/sub", { channels: [view.channel] });
stream.on("message", ({ data }) => receive(data));
stream.on("state", (state) => connectionIs({ open: "live", offline: "offline" }[state] ?? (wasLiveBefore ? "reconnecting" : "connecting")));
(function watch() {
  // Not all in the same second.
  setTimeout(() => countWatchers().finally(watch), WATCHERS_EVERY_MS * (0.8 + Math.random() * 0.4));
})();
setInterval(() => {
  for (const time of document.querySelectorAll("#comments time")) time.textContent = ago(Date.parse(time.dateTime));
}, 15_000);
