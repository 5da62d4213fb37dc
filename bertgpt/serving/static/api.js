/** Calls of the server, and what went wrong as a sentence. */

import { t } from "./strings.js";

const SILENCE = 180_000; // milliseconds without a byte after which a call is given up

/** The bearer token, in this variable and nowhere else: it is gone when the page is closed. */
let token = "";
export const setToken = (text) => {
  token = text.trim();
};
export const hasToken = () => token !== "";

/** Address of a path of the server, which may stand below a prefix of a proxy. */
export const address = (path) => new URL(path, document.baseURI).href;

/** What went wrong, as a sentence for the reader. `kind`: "token", "busy", "stopped", "network", "server" or "input". */
export class CallError extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

/** Sends `body` (GET if undefined) and returns the response with a function that tells that bytes came in. */
async function send(path, body, signal) {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), SILENCE);
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), SILENCE);
  };
  const done = () => clearTimeout(timer);
  const headers = {
    ...(token && { Authorization: `Bearer ${token}` }),
    ...(body && { "Content-Type": "application/json" }),
  };
  const explain = (error) => {
    done();
    if (error instanceof CallError) return error;
    if (signal?.aborted) return new CallError("stopped", t("error_stopped"));
    if (silence.signal.aborted) return new CallError("network", t("error_silence", { seconds: SILENCE / 1000 }));
    return new CallError("network", t("error_network"));
  };
  try {
    const response = await fetch(address(path), {
      method: body === undefined ? "GET" : "POST",
      body: body === undefined ? undefined : JSON.stringify(body),
      headers,
      signal: AbortSignal.any([silence.signal, ...(signal ? [signal] : [])]),
    });
    if (!response.ok) throw await refusal(response);
    return { response, alive, done, explain };
  } catch (error) {
    throw explain(error);
  }
}

/** The sentence of a response that is not 2xx. */
async function refusal(response) {
  const said = await response.json().then(
    (answer) => answer?.error?.message,
    () => undefined,
  );
  const message = typeof said === "string" ? said : "";
  if (response.status === 401) return new CallError("token", hasToken() ? t("error_token_wrong") : t("error_token"));
  if (response.status === 429) {
    const seconds = Number(response.headers.get("Retry-After"));
    return new CallError("busy", seconds > 0 ? t("error_busy_seconds", { seconds }) : t("error_busy"));
  }
  if (response.status >= 500) return new CallError("server", t("error_server", { status: response.status, message }));
  return new CallError("input", message || t("error_status", { status: response.status }));
}

/** The JSON answer of a call. */
export async function call(path, body, signal) {
  const { response, done, explain } = await send(path, body, signal);
  try {
    return await response.json();
  } catch (error) {
    throw error instanceof SyntaxError ? new CallError("server", t("error_json")) : explain(error);
  } finally {
    done();
  }
}

/** Events of a call that streams (server-sent events), each parsed; ends at [DONE]. */
export async function* stream(path, body, signal) {
  const { response, alive, done, explain } = await send(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done: ended } = await reader.read();
      if (ended) throw new CallError("server", t("error_cut"));
      alive();
      const events = (text + value).replace(/\r\n?/g, "\n").split("\n\n");
      text = events.pop();
      for (const event of events) {
        const data = event
          .split("\n")
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trim());
        if (!data.length) continue;
        if (data.join("\n") === "[DONE]") return;
        const piece = JSON.parse(data.join("\n"));
        if (piece.error) throw new CallError("server", t("error_server", { status: "", message: piece.error.message }));
        yield piece;
      }
    }
  } catch (error) {
    throw error instanceof SyntaxError ? new CallError("server", t("error_json")) : explain(error);
  } finally {
    done();
    reader.cancel().catch(() => {}); // the server frees what it holds for us
  }
}
