// What the worker tells, as server-sent events. Read by fetch, which can show a token; EventSource cannot.

export class Feed {
  constructor(token, heard, changed) {
    this.token = token;
    this.heard = heard; // (name, data)
    this.changed = changed; // ("live" | "lost" | "denied", why)
    this.abort = new AbortController();
    this.run();
  }

  stop() {
    this.abort.abort();
  }

  async run() {
    while (!this.abort.signal.aborted) {
      try {
        const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
        const answer = await fetch("/events", { headers, signal: this.abort.signal, cache: "no-store" });
        if (answer.status === 401 || answer.status === 403) {
          this.changed("denied", "A token is needed to read here.");
          return;
        }
        if (!answer.ok) throw new Error(`the worker answered ${answer.status}`);
        this.changed("live", "");
        await this.read(answer.body.pipeThrough(new TextDecoderStream()).getReader());
        throw new Error("the worker ended the connection");
      } catch (error) {
        if (this.abort.signal.aborted) return;
        this.changed("lost", String(error.message || error));
        await new Promise((done) => setTimeout(done, 2000));
      }
    }
  }

  async read(reader) {
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const fields = Object.fromEntries(part.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
        if (fields.event) this.heard(fields.event, JSON.parse(fields.data));
      }
    }
  }
}

// Ask for something, or give a command; throws what went wrong, in the worker's words.
export async function ask(token, path, body) {
  const answer = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers: { ...(token ? { Authorization: `Bearer ${token}` } : {}), ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
  });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.detail || `the worker answered ${answer.status}`);
  return found;
}
