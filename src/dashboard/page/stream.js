// What the server tells, over server-sent events: a picture a second. A stream that
// ends, or falls silent, is opened anew.

const SILENT_MS = 8_000;
const LONGEST_WAIT_MS = 10_000;

export class Stream {
  #source = null;
  #heard = 0;
  #wait = 500;
  #timer = null;
  #stopped = false;

  /** `show` takes each picture, `say` how the stream is. */
  constructor(show, say) {
    this.show = show;
    this.say = say;
    this.open();
    setInterval(() => this.#check(), 1_000);
    // A laptop that is opened again, a tab that is looked at again.
    addEventListener("online", () => this.#check());
    document.addEventListener("visibilitychange", () => this.#check());
  }

  open() {
    this.#source?.close();
    clearTimeout(this.#timer);
    if (this.#stopped) return;
    this.#heard = performance.now();
    const source = (this.#source = new EventSource("/api/events"));
    source.addEventListener("message", (event) => {
      this.#heard = performance.now();
      this.#wait = 500;
      this.say("live");
      this.show(JSON.parse(event.data));
    });
    source.addEventListener("error", () => this.#again(source));
  }

  /** Ends it: what is shown stays. */
  stop() {
    this.#stopped = true;
    this.#source?.close();
    clearTimeout(this.#timer);
  }

  async #again(source) {
    if (source !== this.#source || this.#stopped) return;
    source.close();
    this.say("lost");
    this.#timer = setTimeout(() => this.open(), this.#wait);
    this.#wait = Math.min(2 * this.#wait, LONGEST_WAIT_MS);
    // The token may have changed with the server.
    const answer = await fetch("/api/snapshot").catch(() => null);
    if (answer?.status === 401) location.assign("/login");
  }

  #check() {
    const silent = performance.now() - this.#heard > SILENT_MS;
    if (silent && !this.#stopped && !document.hidden) {
      this.say("lost");
      this.open();
    }
  }
}
