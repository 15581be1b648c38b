/**
 * The event stream format (WHATWG HTML, section 9.2.6), of text that comes in pieces.
 */
export class EventParser {
  #line = "";
  #afterCr = false;
  #data = "";
  #type = "";
  #id;
  #on;

  /** The last event id, as a browser would send it. */
  lastId;

  /**
   * @param {{ event: (type: string, data: string, id: string) => void, retry?: (ms: number) => void }} on
   * @param {string} [lastId]
   */
  constructor(on, lastId = "") {
    this.#on = on;
    this.#id = this.lastId = lastId;
  }

  /**
   * Takes decoded text; its byte order mark is gone already.
   * @param {string} text
   */
  push(text) {
    let from = 0;
    for (let at = 0; at < text.length; at++) {
      const code = text.charCodeAt(at);
      if (code !== 10 && code !== 13) {
        this.#afterCr = false;
        continue;
      }
      // The second half of CRLF, also where the two come apart.
      const second = code === 10 && this.#afterCr;
      this.#afterCr = code === 13;
      if (!second) {
        const line = this.#line + text.slice(from, at);
        this.#line = "";
        this.#take(line);
      }
      from = at + 1;
    }
    this.#line += text.slice(from);
  }

  /** @param {string} line */
  #take(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value[0] === " ") value = value.slice(1);
    if (name === "data") this.#data += value + "\n";
    else if (name === "event") this.#type = value;
    else if (name === "id") {
      if (!value.includes("\0")) this.#id = value;
    } else if (name === "retry" && isNumber(value)) this.#on.retry?.(Number(value));
  }

  #dispatch() {
    this.lastId = this.#id;
    const [data, type] = [this.#data, this.#type];
    this.#data = this.#type = "";
    if (data) this.#on.event(type || "message", data.slice(0, -1), this.lastId);
  }
}

/**
 * Nothing but digits, and some.
 * @param {string} text
 */
export function isNumber(text) {
  for (const character of text) if (character < "0" || character > "9") return false;
  return text !== "";
}
