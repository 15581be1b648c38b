import { notAbove } from "./ids.js";
import { NOTICES, eventsource, fetching, poll, websocket } from "./transports.js";

export { EventParser } from "./parser.js";

/**
 * @typedef {object} Message
 * @property {any} data
 * @property {string} [id] where to go on from; the last copy of a message in several channels has it
 * @property {string} [channel]
 * @property {string} [type]
 *
 * @typedef {"eventsource" | "fetch" | "websocket" | "poll"} Transport
 * @typedef {"connecting" | "open" | "waiting" | "offline" | "closed"} State
 *
 * @typedef {object} Options
 * @property {string[]} [channels] appended to the URL, one path segment each
 * @property {string} [position] event id to go on from
 * @property {Transport | "auto"} [transport]
 * @property {Partial<Record<Transport, string>>} [urls] locations of other modes, if they are not the first URL
 * @property {string} [publish] location of a publisher, with channels in `?id=`
 * @property {() => string | { token: string, expires?: number } | Promise<string | { token: string, expires?: number }>} [token] expires:
 *   milliseconds since 1970; a JWT says it itself
 * @property {string} [tokenArgument] the token goes into the URL under this name, and not into `Authorization`
 * @property {Record<string, string>} [headers]
 * @property {RequestCredentials} [credentials]
 * @property {string} [positionArgument] what the location has in push_stream_last_event_id
 * @property {string[]} [types] event types that a native EventSource listens for
 * @property {boolean} [share] one connection for all tabs
 * @property {boolean} [persist] the position outlives a reload of the page
 * @property {number} [patience] milliseconds until `auto` tries another transport
 * @property {(text: string) => any} [decode] reads what the location's template writes
 *
 * @typedef {{
 *   message: Message, gap: { channel: string }, deleted: { channel: string }, state: State, expired: undefined,
 *   error: { status?: number, explain?: string | null, transport: Transport, retryIn: number },
 * }} Events
 *
 * @typedef {{ hello?: string, wake?: true, state?: State, at?: string, event?: [name: keyof Events, value: any, wire: string] }} Said
 */

const TRANSPORTS = { eventsource, fetch: fetching, websocket, poll };
const HALF_A_MINUTE_MS = 30_000;

/**
 * Subscribes, stays subscribed, and misses nothing.
 * @param {string} url
 * @param {Options} [options]
 */
export function connect(url, options = {}) {
  return new Stream(url, options);
}

export class Stream {
  /** Where this page is. */
  position = "";
  /** @type {State} */
  state = "connecting";
  /** @type {Transport | undefined} */
  transport;

  #url;
  #o;
  /** @type {Set<string>} */
  #channels;
  /** @type {Map<string, Set<(value: any) => void>>} */
  #listeners = new Map();
  // The connection, if this tab has it, and where that is: behind `position` while others catch up.
  #wire = "";
  /** @type {import("./transports.js").Connection | undefined} */
  #connection;
  #attempt = 0;
  #failures = 0;
  #retryMs = 1000;
  /** @type {any} */ #timer;
  /** @type {any} */ #renewal;
  /** @type {string | undefined} */
  #token;
  #gone = new AbortController();
  // The other tabs.
  /** @type {BroadcastChannel | undefined} */
  #tabs;
  /** @type {(() => void) | undefined} */
  #abdicate;
  #leads = false;
  #gapped = false;
  #suspended = false;

  /**
   * @param {string} url
   * @param {Options} options
   */
  constructor(url, options) {
    this.#url = new URL(url, location.href).href;
    this.#o = { positionArgument: "after", patience: 10_000, credentials: /** @type {RequestCredentials} */ ("same-origin"), ...options };
    this.#channels = new Set(options.channels);
    this.position = options.position || (options.persist && stored("sessionStorage", this.#key)) || "";
    this.#watch();
    // Listeners come first.
    queueMicrotask(() => this.#enter());
  }

  /**
   * Returns a function that stops it.
   * @template {keyof Events} N
   * @param {N} name
   * @param {(value: Events[N]) => void} listener
   */
  on(name, listener) {
    const all = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, all.add(listener));
    return () => void all.delete(listener);
  }

  /** @returns {AsyncGenerator<Message, void>} */
  async *[Symbol.asyncIterator]() {
    /** @type {Message[]} */
    const queue = [];
    let awake = () => {};
    const off = this.on("message", (message) => (queue.push(message), awake()));
    const stop = this.on("state", () => awake());
    try {
      for (;;) {
        while (queue.length) yield /** @type {Message} */ (queue.shift());
        if (this.state === "closed") return;
        await new Promise((resolve) => (awake = () => resolve(undefined)));
      }
    } finally {
      off();
      stop();
    }
  }

  /** @param {string[]} channels */
  subscribe(...channels) {
    this.#change(() => channels.forEach((channel) => this.#channels.add(channel)));
  }

  /** @param {string[]} channels */
  unsubscribe(...channels) {
    this.#change(() => channels.forEach((channel) => this.#channels.delete(channel)));
  }

  /**
   * Publishes by a WebSocket if there is one, else to the publisher.
   * @param {string} text
   * @param {{ channels?: string[], type?: string, id?: string }} [to]
   */
  async publish(text, { channels = [...this.#channels], type, id } = {}) {
    if (!this.#o.publish) {
      if (!this.#connection?.send?.(text)) throw new Error("not connected");
      return;
    }
    const url = new URL(this.#o.publish, location.href);
    url.searchParams.set("id", channels.join("/"));
    const headers = { ...(await this.#headers()), ...(type && { "Event-Type": type }), ...(id && { "Event-Id": id }) };
    const answer = await fetch(url, { method: "POST", body: text, headers, credentials: this.#o.credentials });
    if (!answer.ok) throw new Error(answer.headers.get("X-Nginx-PushStream-Explain") ?? `${answer.status}`);
  }

  close() {
    if (this.state === "closed") return;
    this.#leave();
    this.#gone.abort();
    this.#say("closed");
  }

  // ---- One connection for all tabs: who holds the lock has it, and tells the others ----

  get #key() {
    return `push-stream ${this.#url} ${[...this.#channels].sort().join("/")}`;
  }

  #enter() {
    if (this.state === "closed" || this.#suspended) return;
    if (!this.#o.share || !navigator.locks) return this.#lead();
    const tabs = (this.#tabs = new BroadcastChannel(this.#key));
    tabs.onmessage = ({ data }) => this.#heard(data);
    const abort = new AbortController();
    this.#abdicate = () => abort.abort();
    navigator.locks
      .request(this.#key, { signal: abort.signal }, () => new Promise((resolve) => {
        this.#abdicate = () => resolve(undefined);
        this.#lead();
      }))
      .catch(() => {});
    this.#tell({ hello: this.position });
  }

  #leave() {
    this.#disconnect();
    this.#leads = false;
    this.#abdicate?.();
    this.#tabs?.close();
    this.#abdicate = this.#tabs = undefined;
  }

  #lead() {
    this.#leads = true;
    this.#wire = this.position;
    this.#open();
  }

  /** @param {Said} said */
  #tell(said) {
    this.#tabs?.postMessage(said);
  }

  /** @param {Said} said */
  #heard({ hello, wake, state, at, event }) {
    if (event) this.#deliver(...event);
    if (this.#leads) {
      if (wake && this.state !== "open") this.#open();
      if (hello === undefined) return;
      this.#tell({ state: this.state, at: this.position });
      // A tab that is behind: everybody gets that again, and takes what it does not have.
      if (hello && this.#wire && !notAbove(this.#wire, hello)) {
        this.#wire = hello;
        this.#open();
      }
    } else {
      if (state) this.#say(state);
      if (at && !this.position) this.#move(at);
    }
  }

  /** @param {() => void} change */
  #change(change) {
    if (this.state === "closed") return;
    this.#leave();
    change();
    queueMicrotask(() => this.#leads || this.#tabs || this.#enter());
  }

  // ---- The connection ----

  async #open() {
    this.#disconnect();
    if (!navigator.onLine) return this.#state("offline");
    const attempt = this.#attempt;
    this.#state("connecting");
    /** @type {Record<string, string>} */
    let headers;
    try {
      headers = await this.#headers();
    } catch (error) {
      if (attempt === this.#attempt) this.#again({ explain: String(error) });
      return;
    }
    if (attempt !== this.#attempt) return;
    const names = this.#usable(Object.keys(headers).length > 0);
    const name = (this.transport = names.find((name) => name === this.transport) ?? names[0]);
    const url = this.#address(name);
    const stream = this;
    /** @type {import("./transports.js").Link} */
    const link = {
      url,
      headers,
      credentials: this.#o.credentials,
      types: this.#o.types ?? [],
      get position() {
        return stream.#wire;
      },
      after: () => this.#with(url, this.#o.positionArgument, this.#wire),
      ended: (why) => this.#again(why, names),
      opened: () => {
        clearTimeout(this.#timer);
        if (this.state === "open") return;
        this.#failures = 0;
        if (names.length > 1) stored("localStorage", this.#url, name);
        this.#state("open");
      },
      event: (type, data, id) => this.#event(type, data, id),
      text: (text) => this.#read(text),
      moved: (id) => {
        if (!id || id === this.#wire) return;
        this.#wire = id;
        if (!this.position || notAbove(this.position, id)) this.#move(id);
        this.#tell({ at: id });
      },
      lost: () => this.#state("connecting"),
      gap: (channel) => this.#emit("gap", { channel }),
      retry: (ms) => (this.#retryMs = ms),
    };
    // What comes after the end of this attempt is not heard.
    for (const [what, act] of Object.entries(link)) {
      // @ts-ignore: of the same type
      if (typeof act === "function") link[what] = (...values) => attempt === this.#attempt && act(...values);
    }
    // A long poll may be silent for long.
    if (name !== "poll") this.#timer = setTimeout(() => link.ended({ elsewhere: true }), this.#o.patience);
    this.#connection = TRANSPORTS[name](link);
  }

  #disconnect() {
    this.#attempt++;
    clearTimeout(this.#timer);
    this.#connection?.close();
    this.#connection = undefined;
  }

  /**
   * Full jitter: readers that were cut together do not come back together.
   * @param {import("./transports.js").Failure} why
   * @param {Transport[]} [names]
   */
  #again({ status, explain, retryAfter = 0, elsewhere }, names = []) {
    this.#disconnect();
    if (elsewhere && names.length) this.transport = names[(names.indexOf(/** @type {Transport} */ (this.transport)) + 1) % names.length];
    // An EventSource does not say whether it was that.
    if (status === 401 || elsewhere) this.#token = undefined;
    const longest = Math.min(HALF_A_MINUTE_MS, this.#retryMs * 2 ** this.#failures++);
    const retryIn = retryAfter + Math.random() * longest;
    this.#emit("error", { status, explain, transport: this.transport, retryIn });
    if (status === 401 && this.#o.token) this.#emit("expired", undefined);
    // A listener may have closed it.
    if (this.state === "closed") return;
    this.#state("waiting");
    this.#timer = setTimeout(() => this.#open(), retryIn);
  }

  /**
   * @param {string} type
   * @param {string} data
   * @param {string} [id]
   */
  #event(type, data, id) {
    if (NOTICES.includes(type)) {
      const said = parsed(data) ?? {};
      if (type === "gap") this.#emit("gap", said);
      else if (type === "refused") this.#again({ status: said.status, explain: said.reason });
      else if (type === "token") this.#renewIn(said.expires_in * 1000);
      else {
        this.#token = undefined;
        this.#emit("expired", undefined);
        this.#open();
      }
      return;
    }
    this.#read(data, type === "message" ? undefined : type, id);
  }

  /**
   * @param {string} text
   * @param {string} [type]
   * @param {string} [id]
   */
  #read(text, type, id) {
    const value = this.#o.decode ? this.#o.decode(text) : parsed(text);
    const whole = value && typeof value === "object" && typeof value.id === "number";
    const { id: number, event, eventid, channel } = whole ? value : { id: 1 };
    if (number === -2) return this.#emit("deleted", { channel });
    if (number === -4) return this.#emit("gap", { channel });
    if (number < 0) return;
    const data = whole ? (value.data ?? value.text) : this.#o.decode ? value : text;
    // The template's, or the transport's, which goes on saying the last one.
    const at = event || eventid || (id !== this.#wire && id) || "";
    this.#wire = at || this.#wire;
    this.#emit("message", { data, channel, type: type ?? (whole && value.type) ?? undefined, id: at || undefined });
  }

  /**
   * To this tab and the others.
   * @param {keyof Events} name
   * @param {any} value
   */
  #emit(name, value) {
    const wire = this.#wire;
    this.#tell({ event: [name, value, wire] });
    this.#deliver(name, value, wire);
  }

  /**
   * @param {keyof Events} name
   * @param {any} value
   * @param {string} wire where the connection was
   */
  #deliver(name, value, wire) {
    const { position } = this;
    // Others may be behind this tab, and get again what it has.
    const had = (/** @type {string} */ id) => this.#tabs && position && notAbove(id, position);
    if (name === "gap") {
      if (wire !== position && had(wire)) return;
      // What follows may be older, or of another time.
      this.#gapped = true;
    }
    if (name === "message" && value.id) {
      if (!this.#gapped && had(value.id)) return;
      this.#gapped = false;
      this.#move(value.id);
    }
    this.#call(name, value);
  }

  /** @param {string} id */
  #move(id) {
    this.position = id;
    if (this.#o.persist) stored("sessionStorage", this.#key, id);
  }

  /** @param {State} state */
  #state(state) {
    this.#say(state);
    this.#tell({ state });
  }

  /** @param {State} state */
  #say(state) {
    if (state !== this.state) this.#call("state", (this.state = state));
  }

  /**
   * @param {keyof Events} name
   * @param {any} value
   */
  #call(name, value) {
    for (const listener of this.#listeners.get(name) ?? []) listener(value);
  }

  // ---- Where, and as whom ----

  /** @param {boolean} headers */
  #usable(headers) {
    const { transport = "auto", urls = {} } = this.#o;
    if (transport !== "auto") return [transport];
    /** @type {Transport[]} */
    const names = ["fetch"];
    // A native EventSource keeps to itself where it is before the first message, and other tabs must know.
    if (!headers && (this.position || !this.#tabs)) names.unshift("eventsource");
    if (urls.websocket && !headers) names.push("websocket");
    names.push("poll");
    this.transport ??= /** @type {Transport} */ (stored("localStorage", this.#url));
    return names;
  }

  /** @param {Transport} name */
  #address(name) {
    const url = new URL(this.#o.urls?.[name] ?? this.#url, location.href);
    for (const channel of this.#channels) url.pathname += (url.pathname.endsWith("/") ? "" : "/") + encodeURIComponent(channel);
    return this.#with(url.href, this.#o.tokenArgument, this.#token);
  }

  /**
   * @param {string} url
   * @param {string} [name]
   * @param {string} [value]
   */
  #with(url, name, value) {
    if (!name || !value) return url;
    const changed = new URL(url);
    changed.searchParams.set(name, value);
    return changed.href;
  }

  /** @returns {Promise<Record<string, string>>} */
  async #headers() {
    const { headers = {}, token, tokenArgument } = this.#o;
    if (!token) return headers;
    if (!this.#token) {
      const given = await token();
      const said = typeof given === "string" ? { token: given } : given;
      this.#token = said.token;
      this.#renewIn((said.expires ?? expiry(said.token) ?? NaN) - Date.now());
    }
    return tokenArgument ? headers : { ...headers, Authorization: `Bearer ${this.#token}` };
  }

  /**
   * Before it ends, and not at once again if it is short or the same. Without an end, never.
   * @param {number} left
   */
  #renewIn(left) {
    clearTimeout(this.#renewal);
    if (left < 2 ** 31) {
      this.#renewal = setTimeout(() => {
        this.#token = undefined;
        if (this.#leads && this.#connection) this.#open();
      }, Math.max(left - HALF_A_MINUTE_MS, left / 2, 1000));
    }
  }

  // ---- The page ----

  #watch() {
    const watch = (/** @type {string} */ name, /** @type {() => void} */ act) => addEventListener(name, act, { signal: this.#gone.signal });
    watch("visibilitychange", () => {
      if (document.hidden || this.state !== "waiting") return;
      if (this.#leads) this.#open();
      else this.#tell({ wake: true });
    });
    watch("online", () => this.#leads && this.#open());
    watch("offline", () => {
      if (!this.#leads) return;
      this.#disconnect();
      this.#state("offline");
    });
    // A page that is kept to go back to holds neither a connection nor the lock.
    watch("pagehide", () => {
      this.#suspended = true;
      this.#leave();
    });
    watch("pageshow", () => {
      if (!this.#suspended) return;
      this.#suspended = false;
      this.#enter();
    });
  }
}

/** @param {string} text */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {}
}

/**
 * When a JWT ends.
 * @param {string} token
 */
function expiry(token) {
  try {
    return JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"))).exp * 1000;
  } catch {}
}

/**
 * Reads or writes; a page that may not store anything forgets.
 * @param {"localStorage" | "sessionStorage"} where
 * @param {string} key
 * @param {string} [value]
 */
function stored(where, key, value) {
  try {
    const storage = window[where];
    if (value !== undefined) storage.setItem(key, value);
    return storage.getItem(key) ?? undefined;
  } catch {}
}
