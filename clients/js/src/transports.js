import { EventParser } from "./parser.js";

/**
 * One attempt to be connected. A transport reports to it; what comes after its end is not heard any more.
 *
 * @typedef {object} Link
 * @property {string} url
 * @property {string} position
 * @property {() => string} after the URL with the position as an argument
 * @property {Record<string, string>} headers
 * @property {RequestCredentials} credentials
 * @property {string[]} types
 * @property {() => void} opened
 * @property {() => void} lost it comes back by itself
 * @property {(type: string, data: string, id?: string) => void} event id: undefined if the transport knows none
 * @property {(text: string) => void} text a rendered template
 * @property {(id: string) => void} moved the position is another, without a message
 * @property {(channel: string) => void} gap
 * @property {(ms: number) => void} retry
 * @property {(why: Failure) => void} ended
 *
 * @typedef {object} Failure
 * @property {number} [status]
 * @property {string | null} [explain]
 * @property {number} [retryAfter] milliseconds
 * @property {boolean} [elsewhere] another transport may do better
 *
 * @typedef {{ close: () => void, send?: (text: string) => boolean }} Connection
 */

/** What the module says in events of its own names. */
export const NOTICES = ["gap", "token", "expired", "refused"];

/** @type {(link: Link) => Connection} */
export function eventsource(link) {
  const source = new EventSource(link.after(), { withCredentials: link.credentials === "include" });
  source.onopen = () => link.opened();
  source.onerror = () => {
    // Cut: the browser comes back by itself, when `retry:` says. Otherwise it has given up for good, and does not say why.
    if (source.readyState === 2) link.ended({ elsewhere: true });
    else link.lost();
  };
  for (const type of ["message", ...NOTICES, ...link.types]) {
    source.addEventListener(type, (event) => link.event(type, event.data, event.lastEventId));
  }
  return source;
}

/** @type {(link: Link) => Connection} */
export function fetching(link) {
  const abort = new AbortController();
  const parser = new EventParser(link, link.position);
  (async () => {
    const answer = await request(link, abort, { Accept: "text/event-stream" });
    if (!answer) return;
    // A proxy that holds answers back may let the head through.
    const reader = /** @type {ReadableStream<Uint8Array>} */ (answer.body).getReader();
    const decoder = new TextDecoder();
    for (let first = true; ; first = false) {
      const { value, done } = await reader.read();
      if (done) break;
      if (first) link.opened();
      parser.push(decoder.decode(value, { stream: true }));
      link.moved(parser.lastId);
    }
    link.ended({});
  })().catch(() => link.ended({}));
  return { close: () => abort.abort() };
}

/** @type {(link: Link) => Connection} */
export function websocket(link) {
  const socket = new WebSocket(link.after().replace("http", "ws"));
  let open = false;
  socket.onopen = () => {
    open = true;
    link.opened();
  };
  socket.onmessage = ({ data }) => link.text(data);
  socket.onclose = ({ code, reason }) => {
    if (code === 3000) return link.event("expired", "");
    /** @type {{ http_status?: number, explain?: string }} */
    let why = {};
    try {
      if (code === 1008) why = JSON.parse(reason);
    } catch {}
    link.ended({ status: why.http_status, explain: why.explain, elsewhere: !open });
  };
  return { close: () => socket.close(), send: (text) => socket.readyState === 1 && (socket.send(text), true) };
}

/** @type {(link: Link) => Connection} */
export function poll(link) {
  const abort = new AbortController();
  /** @type {Record<string, string>} */
  const where = { "X-Nginx-PushStream-Mode": "long-polling" };
  // Not refused, and nothing new: it waits.
  const waits = setTimeout(link.opened, 2000);
  (async () => {
    for (;;) {
      const answer = await request(link, abort, where);
      if (!answer) return;
      // All of it, or nothing: where the answer is cut, this fails, and the same position is asked for again.
      const text = await answer.text();
      link.opened();
      const said = (/** @type {string} */ name) => answer.headers.get(name) ?? "";
      const keep = (/** @type {string} */ name, /** @type {string} */ value) => value && (where[name] = value);
      keep("If-Modified-Since", said("Last-Modified"));
      keep("If-None-Match", said("Etag"));
      for (const channel of said("X-Nginx-PushStream-Gap").split(", ")) if (channel) link.gap(decodeURIComponent(channel));
      // Of an EventSource location, which begins with a comment.
      if (text[0] === ":") {
        new EventParser(link, link.position).push(text);
      } else for (const line of text.split("\n")) if (line) link.text(line);
      link.moved(said("X-Nginx-PushStream-Event-Id"));
    }
  })().catch(() => link.ended({ elsewhere: true }));
  return {
    close: () => {
      clearTimeout(waits);
      abort.abort();
    },
  };
}

/**
 * Asks once; tells the link why if that was refused.
 * @param {Link} link
 * @param {AbortController} abort
 * @param {Record<string, string>} more
 */
async function request(link, abort, more) {
  const { url, credentials, position } = link;
  const headers = { ...link.headers, ...(position && { "Last-Event-ID": position }), ...more };
  const answer = await fetch(url, { headers, cache: "no-store", credentials, signal: abort.signal });
  const { status } = answer;
  if (status === 200 || (status === 304 && more["X-Nginx-PushStream-Mode"])) return answer;
  const after = answer.headers.get("Retry-After") ?? "";
  link.ended({
    status,
    explain: answer.headers.get("X-Nginx-PushStream-Explain"),
    retryAfter: Number(after) * 1000 || Math.max(0, Date.parse(after) - Date.now()) || 0,
  });
}
