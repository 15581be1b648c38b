// The names of the C module's own client, pushstream.js, for pages that were written for it: its class, options, URLs and callbacks.
// Written from what such pages say and what the server expects.
import { notAbove } from "./ids.js";
import { eventsource, fetching } from "./transports.js";

/**
 * @typedef {"websocket" | "eventsource" | "stream" | "longpolling"} Mode
 *
 * @typedef {object} Settings
 * @property {string} [modes] those to try, in that order, joined by "|"
 * @property {string} [host] the page's
 * @property {string | number} [port] the page's, if the host is
 * @property {string} [urlPrefixPublisher]
 * @property {string} [urlPrefixStream]
 * @property {string} [urlPrefixEventsource]
 * @property {string} [urlPrefixLongpolling]
 * @property {string} [urlPrefixWebsocket]
 * @property {boolean} [messagesControlByArgument] arguments of the URL say where the page is, and not headers
 * @property {boolean} [useJSONP] long polling by `<script>`
 * @property {number} [reconnectOnTimeoutInterval] milliseconds, of which it waits between half and all
 * @property {number} [reconnectOnChannelUnavailableInterval] the same, where the server says 403
 *
 * @typedef {{ type: "load" | "timeout", status?: number }} Trouble
 * @typedef {{ id: number, channel: string, text: string, eventid: string, time: string, tag: string }} Message
 * @typedef {(act: (...values: any[]) => void) => (...values: any[]) => void} Heard what comes after the end of an attempt is not heard any more
 */

const DEFAULTS = {
  modes: "websocket|eventsource|stream|longpolling",
  host: "",
  port: /** @type {string | number} */ (""),
  urlPrefixPublisher: "/pub",
  urlPrefixStream: "/sub",
  urlPrefixEventsource: "/ev",
  urlPrefixLongpolling: "/lp",
  urlPrefixWebsocket: "/ws",
  messagesControlByArgument: false,
  useJSONP: false,
  reconnectOnTimeoutInterval: 3_000,
  reconnectOnChannelUnavailableInterval: 60_000,
};
/** Until a mode that does not come through is given up. */
const PATIENCE_MS = 10_000;
const POLL_MS = 32_000;

export class PushStream {
  static CLOSED = 0;
  static CONNECTING = 1;
  static OPEN = 2;

  /** @type {PushStream[]} */
  static #all = [];

  /**
   * What a stream's frame calls first, in the location's header template.
   * @param {any} frame its window
   */
  static register(frame) {
    for (const client of PushStream.#all) if (client.#frame?.contentWindow === frame) client.#register(frame);
  }

  /** @type {((text: string, id: number, channel: string, eventid: string) => void) | undefined} */
  onmessage;
  /** @type {((channel: string) => void) | undefined} */
  onchanneldeleted;
  /** @type {((state: number) => void) | undefined} */
  onstatuschange;
  /** @type {((trouble: Trouble) => void) | undefined} */
  onerror;
  readyState = PushStream.CLOSED;

  #o;
  #origin;
  /** @type {Mode[]} */
  #modes;
  #number;
  /** @type {Map<string, { backtrack?: number }>} */
  #channels = new Map();
  /** Where the server is to go on. */
  #time = "";
  #tag = "";
  #eventId = "";
  /** The last message of each channel: what several channels share may go back behind it. @type {Map<string, string>} */
  #last = new Map();
  #attempt = 0;
  /** @type {() => void} */
  #end = () => {};
  #works = false;
  /** @type {any} */ #timer;
  /** @type {HTMLIFrameElement | undefined} */
  #frame;
  /** @type {WebSocket | undefined} */
  #socket;

  /** @param {Settings} [settings] */
  constructor(settings = {}) {
    this.#o = { ...DEFAULTS, ...settings };
    for (const name of Object.keys(settings)) {
      if (!(name in DEFAULTS)) console.warn(`PushStream: the option ${name} is not known here`);
    }
    const { host, port } = this.#o;
    const scheme = location.protocol === "https:" ? "https:" : "http:";
    this.#origin = host || port ? new URL(`${scheme}//${host || location.hostname}${port ? `:${port}` : ""}`).origin : location.origin;
    // A frame of another origin cannot call this page, and each browser has the rest.
    const can = (/** @type {string} */ mode) =>
      mode === "stream" ? this.#origin === location.origin : mode === "websocket" || mode === "eventsource" || mode === "longpolling";
    this.#modes = /** @type {Mode[]} */ (this.#o.modes.split("|").filter(can));
    if (!this.#modes.length) throw new Error(`PushStream: none of the modes ${this.#o.modes} can be used`);
    this.#number = PushStream.#all.push(this);
    addEventListener("pageshow", ({ persisted }) => persisted && this.readyState && this.#open());
  }

  /**
   * @param {string} name
   * @param {{ backtrack?: number }} [options] backtrack: how many stored messages to begin with
   */
  addChannel(name, options = {}) {
    this.#channels.set(name, options);
    if (this.readyState) this.#open();
  }

  /** @param {string} name */
  removeChannel(name) {
    if (!this.#channels.delete(name) || !this.readyState) return;
    if (this.#channels.size) this.#open();
    else this.disconnect();
  }

  connect() {
    if (!this.#channels.size) throw new Error("PushStream: no channel was added");
    if (!this.readyState) this.#open();
  }

  disconnect() {
    this.#close();
    this.#say(PushStream.CLOSED);
  }

  /**
   * Publishes to all of its channels: by its WebSocket, or else to the publisher.
   * @param {string} text
   */
  sendMessage(text) {
    const body = encodeURIComponent(text);
    if (this.#socket?.readyState === 1) return this.#socket.send(body);
    const headers = { "Content-Type": "application/x-www-form-urlencoded", Accept: "application/json" };
    const id = ["", ...this.#names()].join("/");
    fetch(`${this.#origin}${this.#o.urlPrefixPublisher}?id=${id}`, { method: "POST", headers, body })
      .then(({ ok, status }) => ok || this.onerror?.({ type: "load", status }))
      .catch(() => this.onerror?.({ type: "load" }));
  }

  // ---- The connection ----

  #close() {
    this.#attempt++;
    clearTimeout(this.#timer);
    this.#end();
    this.#end = () => {};
  }

  #open() {
    this.#close();
    this.#say(PushStream.CONNECTING);
    const attempt = this.#attempt;
    /** @type {Heard} */
    const heard = (act) => (...values) => void (attempt === this.#attempt && act(...values));
    const begin = {
      websocket: () => this.#websocket(heard),
      eventsource: () => this.#eventsource(heard),
      stream: () => this.#stream(heard),
      longpolling: () => (this.#o.useJSONP ? this.#jsonp(heard) : this.#longpolling(heard)),
    };
    const [mode] = this.#modes;
    this.#end = begin[mode]();
    // A long poll that is not refused, and has nothing new, waits.
    if (mode === "longpolling") this.#timer = setTimeout(() => this.#opened(), 2_000);
    else this.#timer = setTimeout(() => this.#again({ type: "timeout" }), PATIENCE_MS);
  }

  #opened() {
    clearTimeout(this.#timer);
    this.#works = true;
    this.#say(PushStream.OPEN);
  }

  /** @param {Trouble} trouble */
  #again(trouble) {
    this.#close();
    const { reconnectOnTimeoutInterval, reconnectOnChannelUnavailableInterval } = this.#o;
    const refused = trouble.status === 403;
    // What has worked once does so again, when the server is back.
    if (!this.#works && !refused) this.#modes.push(/** @type {Mode} */ (this.#modes.shift()));
    const attempt = this.#attempt;
    this.#say(PushStream.CONNECTING);
    this.onerror?.(trouble);
    if (attempt !== this.#attempt) return;
    const wait = refused ? reconnectOnChannelUnavailableInterval : reconnectOnTimeoutInterval;
    this.#timer = setTimeout(() => this.#open(), wait * (0.5 + Math.random() / 2));
  }

  /** @param {number} state */
  #say(state) {
    if (state !== this.readyState) this.onstatuschange?.((this.readyState = state));
  }

  // ---- Modes: each begins, and returns how to end it ----

  /** @param {Heard} heard */
  #websocket(heard) {
    const socket = (this.#socket = new WebSocket(this.#url("Websocket").replace("http", "ws")));
    socket.onopen = heard(() => this.#opened());
    socket.onmessage = heard(({ data }) => this.#read(data));
    socket.onclose = heard(({ code, reason }) => this.#again({ type: code === 1006 ? "load" : "timeout", status: code === 1008 ? refusal(reason) : undefined }));
    return () => socket.close();
  }

  /** @param {Heard} heard */
  #eventsource(heard) {
    const again = heard((why) => this.#again({ type: "load", status: why?.status }));
    /** @type {import("./transports.js").Link} */
    const link = {
      url: this.#url("Eventsource"),
      position: this.#eventId,
      after: () => link.url,
      headers: {},
      credentials: "same-origin",
      types: [],
      opened: heard(() => this.#opened()),
      // The browser would come back to a URL of the past.
      lost: again,
      ended: again,
      event: heard((type, data, id) => {
        this.#eventId = id ?? this.#eventId;
        if (type === "message") this.#read(data);
      }),
      text: () => {},
      moved: heard((id) => (this.#eventId = id)),
      gap: () => {},
      retry: () => {},
    };
    // A new EventSource cannot say in a header where the last one was.
    const connection = !this.#o.messagesControlByArgument && link.position ? fetching(link) : eventsource(link);
    return () => connection.close();
  }

  /** @param {Heard} heard */
  #stream(heard) {
    const frame = (this.#frame = document.createElement("iframe"));
    frame.style.display = "none";
    frame.src = this.#url("Stream", { streamid: `${this.#number}` });
    // At its end, and where the browser shows a page of its own.
    frame.onload = heard(() => this.#again({ type: "load" }));
    (document.body ?? document.documentElement).append(frame);
    return () => {
      this.#frame = undefined;
      frame.remove();
    };
  }

  /** @param {any} frame */
  #register(frame) {
    const attempt = this.#attempt;
    let pinged = 0;
    /** @type {any} */ let silence;
    this.#opened();
    frame.p = (/** @type {number} */ id, /** @type {string} */ channel, /** @type {string} */ text, /** @type {string} */ eventid, /** @type {string} */ time, /** @type {string} */ tag) => {
      if (attempt !== this.#attempt) return;
      // Nothing else tells of a connection that is dead; what is silent for two pings is.
      if (id === -1) {
        const now = Date.now();
        clearTimeout(silence);
        if (pinged) silence = this.#timer = setTimeout(() => this.#again({ type: "timeout" }), 2 * (now - pinged) + 2_000);
        pinged = now;
      }
      this.#take({ id, channel, text, eventid, time, tag });
    };
  }

  /** @param {Heard} heard */
  #longpolling(heard) {
    const abort = new AbortController();
    const again = heard((trouble) => this.#again(trouble));
    (async () => {
      for (;;) {
        /** @type {Record<string, string>} */
        const headers = {};
        if (!this.#o.messagesControlByArgument) {
          if (this.#tag) headers["If-None-Match"] = `W/${this.#tag}`;
          if (this.#time) headers["If-Modified-Since"] = this.#time;
        }
        const signal = AbortSignal.any([abort.signal, AbortSignal.timeout(POLL_MS)]);
        const answer = await fetch(this.#url("Longpolling"), { headers, cache: "no-store", signal });
        const { status } = answer;
        if (status !== 200 && status !== 304) return again({ type: "load", status });
        // All of it, or nothing: where it is cut the same position is asked for again.
        const text = await answer.text();
        if (abort.signal.aborted) return;
        this.#opened();
        this.#read(text);
        // A listener may have ended it.
        if (abort.signal.aborted) return;
        const [time, tag] = ["Last-Modified", "Etag"].map((name) => answer.headers.get(name));
        if (time && tag) [this.#time, this.#tag] = [time, tag.slice(tag.startsWith("W/") ? 2 : 0)];
      }
    })().catch((error) => again({ type: error?.name === "TimeoutError" ? "timeout" : "load" }));
    return () => abort.abort();
  }

  /** @param {Heard} heard */
  #jsonp(heard) {
    let polls = 0;
    let ended = false;
    /** @type {() => void} */
    let forget = () => {};
    /** @type {Record<string, any>} */
    const page = window;
    const ask = () => {
      const script = document.createElement("script");
      const callback = `PushStream_${this.#number}_onmessage_${Date.now()}_${this.#attempt}_${++polls}`;
      page[callback] = (/** @type {Message[]} */ messages) => {
        for (const message of messages) if (!ended) this.#take(message);
      };
      forget = () => {
        script.remove();
        // It may be on its way.
        page[callback] = () => {};
        setTimeout(() => delete page[callback], POLL_MS);
      };
      script.onload = heard(() => {
        this.#opened();
        forget();
        ask();
      });
      script.onerror = heard(() => this.#again({ type: "load" }));
      script.src = this.#url("Longpolling", { callback });
      document.head.append(script);
    };
    ask();
    return () => {
      ended = true;
      forget();
    };
  }

  // ---- Where ----

  #names() {
    return [...this.#channels.keys()].map(encodeURIComponent);
  }

  /**
   * @param {"Stream" | "Eventsource" | "Longpolling" | "Websocket"} mode
   * @param {Record<string, string>} [more]
   */
  #url(mode, more) {
    const { messagesControlByArgument, useJSONP, ...prefixes } = this.#o;
    const byArgument = messagesControlByArgument || (mode === "Longpolling" && useJSONP);
    const known = this.#time || this.#eventId;
    const path = [...this.#channels].map(([name, { backtrack }]) => encodeURIComponent(name) + (backtrack && !known ? `.b${backtrack}` : "")).join("/");
    /** @type {Record<string, string>} */
    const said = { _: `${Date.now()}`, ...more };
    if (byArgument || mode !== "Longpolling") {
      const [time, tag, eventid] = byArgument ? [this.#time, this.#time && this.#tag, this.#time ? "" : this.#eventId] : ["", "", ""];
      Object.assign(said, { tag, time, eventid });
    }
    // Not URLSearchParams, which make a space "+".
    const query = Object.entries(said).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
    return `${this.#origin}${prefixes[`urlPrefix${mode}`]}/${path}?${query.join("&")}`;
  }

  // ---- What comes ----

  /** @param {string} text a message or several, in the location's template */
  #read(text) {
    const attempt = this.#attempt;
    for (const object of objects(text)) {
      let message;
      try {
        message = JSON.parse(object);
      } catch {
        console.warn("PushStream: a message is no JSON; the server's push_stream_message_template has to make it some", object);
        continue;
      }
      if (attempt === this.#attempt) this.#take(message);
    }
  }

  /** @param {Message} message */
  #take({ id, channel, text, eventid, time, tag }) {
    if (id === -2) return this.onchanneldeleted?.(decoded(channel));
    // Pings, and polls that were in vain.
    if (!(id > 0)) return;
    this.#time = time ?? "";
    this.#tag = `${tag ?? ""}`;
    this.#eventId = eventid || this.#eventId;
    const seconds = Date.parse(time) / 1000;
    if (seconds >= 0 && this.#tag) {
      const place = `${seconds}-${this.#tag}`;
      const last = this.#last.get(channel);
      if (last && notAbove(place, last)) return;
      this.#last.set(channel, place);
    }
    this.onmessage?.(decoded(text), id, channel, eventid);
  }
}

/** @param {string} text */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/**
 * The status that a WebSocket would have been refused with, in the reason of its close frame.
 * @param {string} reason
 */
function refusal(reason) {
  try {
    return JSON.parse(reason).http_status;
  } catch {}
}

/**
 * The objects in a text, which follow each other with line ends between them, or nothing.
 * @param {string} text
 */
function* objects(text) {
  let from = 0;
  let depth = 0;
  let quoted = false;
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (character === "\n" || character === "\r") {
      // No string goes over a line's end: what is broken spoils its own line only.
      if (quoted) {
        yield text.slice(from, at);
        from = at + 1;
        depth = 0;
        quoted = false;
      }
    } else if (quoted) {
      if (character === "\\") at++;
      else if (character === '"') quoted = false;
    } else if (character === '"') quoted = true;
    else if (character === "{") {
      if (depth++ === 0) from = at;
    } else if (character === "}" && depth > 0 && --depth === 0) {
      yield text.slice(from, at + 1);
      from = at + 1;
    }
  }
  if (depth) yield text.slice(from);
}

Object.assign(globalThis, { PushStream });
