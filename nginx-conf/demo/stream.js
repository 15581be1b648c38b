// An EventSource that does not give up.
//
// The browser reconnects by itself after a lost connection and sends Last-Event-ID, so that nginx goes on where it
// stopped. It gives up for good on any answer but 200 (a proxy's 502 during a restart is enough): from there on we try
// again, ever more slowly.

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30_000;

export class Stream {
  #url;
  #on;
  #source = null;
  #timer = 0;
  #failures = 0;

  /**
   * @param {string} url
   * @param {{message: (data: string) => void, state: (state: "connecting"|"live"|"reconnecting"|"offline") => void}} on
   */
  constructor(url, on) {
    this.#url = url;
    this.#on = on;
    addEventListener("online", () => this.open());
    addEventListener("offline", () => this.#on.state("offline"));
    // A page in the back-forward cache must not hold a connection.
    addEventListener("pagehide", () => this.close());
    addEventListener("pageshow", (event) => event.persisted && this.open());
    this.#on.state(navigator.onLine ? "connecting" : "offline");
    this.open();
  }

  open() {
    this.close();
    const source = new EventSource(this.#url);
    this.#source = source;
    source.onopen = () => {
      this.#failures = 0;
      this.#on.state("live");
    };
    source.onmessage = (event) => this.#on.message(event.data);
    source.onerror = () => {
      this.#on.state(navigator.onLine ? "reconnecting" : "offline");
      if (source.readyState === EventSource.CLOSED) this.#retryLater();
    };
  }

  close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #retryLater() {
    const longest = Math.min(FIRST_DELAY_MS * 2 ** this.#failures++, LONGEST_DELAY_MS);
    // Half fixed, half random: thousands of readers must not come back in the same instant.
    this.#timer = setTimeout(() => this.open(), longest / 2 + Math.random() * longest / 2);
  }
}
