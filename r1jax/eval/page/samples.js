// The browser of samples: choose by run, step and text, order by reward or length, turn with buttons or arrow keys.

const ORDERS = {
  "latest step first": (a, b) => b.step - a.step,
  "earliest step first": (a, b) => a.step - b.step,
  "highest reward first": (a, b) => reward(b) - reward(a),
  "lowest reward first": (a, b) => reward(a) - reward(b),
  "longest first": (a, b) => (b.length ?? 0) - (a.length ?? 0),
  "shortest first": (a, b) => (a.length ?? 0) - (b.length ?? 0),
};
const SHOWN = new Set(["run", "step", "prompt", "completion", "reward", "rewards", "advantage", "length", "finish_reason", "solution", "rules", "messages"]);
const TAG = /(<\/?(?:think|answer)>)/;

function reward(sample) {
  if (typeof sample.reward === "number") return sample.reward;
  return Object.values(sample.rewards ?? {}).reduce((sum, value) => sum + (value ?? 0), 0);
}

/** Whether the answer is right: by the rewards that judge the answers of its run; null if none of them applied. */
function judge(sample) {
  const values = data.runs[sample.run].judges.map((name) => sample.rewards?.[name]).filter((value) => typeof value === "number");
  return values.length ? values.every((value) => value === 1) : null;
}

/** A sign and a colour class of a verdict. */
function sign(verdict) {
  if (verdict === null) return { text: "", name: "" };
  return verdict ? { text: "✓", name: "right" } : { text: "✗", name: "wrong" };
}

/** A prompt is a text or a list of messages. */
function flatten(text) {
  if (Array.isArray(text)) return text.map((turn) => `${turn.role}:\n${turn.content}`).join("\n\n");
  return String(text ?? "");
}

/** The text with its think and answer parts lightly coloured, the answer by its verdict: "right", "wrong" or "".
 * `open` says the prompt has opened the think part. */
function colorTags(text, open, verdict = "") {
  const parts = text.split(TAG);
  let part = open || parts.find((piece) => TAG.test(piece)) === "</think>" ? "think" : "";
  return parts.filter((piece) => piece).map((piece) => {
    if (!TAG.test(piece)) return make("span", { class: part || null }, piece);
    const name = piece.includes("think") ? "think" : `answer ${verdict}`.trim();
    part = piece.startsWith("</") ? "" : name;
    return make("span", { class: `tag ${name}` }, piece);
  });
}

/** Whether messages are more than one reply: turns, calls of tools, or what an environment said. */
function isConversation(messages) {
  return Array.isArray(messages) && (messages.length > 1 || messages.some((turn) => turn?.tool_calls));
}

/** A call of a tool: its name and arguments. */
function makeCall(call) {
  const told = call.function ?? call;
  const named = typeof told.arguments === "string" ? told.arguments : Object.entries(told.arguments ?? {}).map(([name, value]) => `${name}=${JSON.stringify(value)}`).join(", ");
  return make("pre", { class: "call" }, make("b", null, String(told.name)), `(${named})`);
}

/** A conversation: what was sampled on the left with a mark, what was given (tools, the environment) shaded and apart. */
function makeConversation(messages, open, verdict) {
  const last = messages.findLastIndex((turn) => turn.role === "assistant");
  return make("ol", { class: "conversation" }, ...messages.map((turn, index) => {
    const sampled = turn.role === "assistant";
    const role = sampled ? "assistant" : turn.role === "tool" ? `result${turn.name ? ` of ${turn.name}` : ""}` : turn.role;
    const text = flatten(turn.content ?? "");
    return make("li", { class: sampled ? "sampled" : "given" },
      make("span", { class: "role" }, role),
      text.trim() ? make("pre", null, ...(sampled ? colorTags(text, open && index === 0, index === last ? verdict : "") : [text])) : null,
      ...(turn.tool_calls ?? []).map(makeCall));
  }));
}

function select(label, options, change) {
  const box = make("select", { "aria-label": label }, ...options.map(([value, text]) => make("option", { value }, text)));
  box.addEventListener("change", change);
  return box;
}

class Browser {
  constructor(root, samples) {
    this.samples = samples.map((sample) => ({ ...sample, prompt: flatten(sample.prompt), completion: flatten(sample.completion) }));
    this.place = 0;
    const refresh = () => this.choose();
    const written = [...new Set(samples.map((sample) => sample.step))].sort((a, b) => a - b);
    this.run = select("Run", [["", "all runs"], ...data.runs.map((run, index) => [index, run.label])], refresh);
    this.step = select("Step", [["", "all steps"], ...written.map((step) => [step, `step ${step}`])], refresh);
    this.order = select("Order", Object.keys(ORDERS).map((name) => [name, name]), refresh);
    this.search = make("input", { type: "search", placeholder: "search texts", "aria-label": "Search samples" });
    this.search.addEventListener("input", refresh);
    this.previous = this.makeButton("Previous", -1);
    this.next = this.makeButton("Next", 1);
    this.count = make("span", { class: "count", "aria-live": "polite" });
    this.list = make("ol", { class: "list" });
    this.detail = make("article", { class: "detail" });
    root.append(
      make("div", { class: "controls" },
        data.runs.length > 1 ? this.run : null, this.step, this.order, this.search,
        make("span", { class: "turn" }, this.previous, this.count, this.next)),
      make("div", { class: "panes", tabindex: "0", "aria-label": "Samples; arrow keys turn" }, this.list, this.detail));
    root.addEventListener("keydown", (event) => this.press(event));
    this.choose();
  }

  makeButton(text, move) {
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", () => this.turn(move));
    return button;
  }

  press(event) {
    if (event.target.matches("input, select, button")) return;
    const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    this.turn(move);
  }

  turn(move) {
    this.show(Math.min(this.chosen.length - 1, Math.max(0, this.place + move)));
  }

  choose() {
    const wanted = this.search.value.toLowerCase();
    this.chosen = this.samples.filter((sample) =>
      (this.run.value === "" || sample.run === Number(this.run.value)) &&
      (this.step.value === "" || sample.step === Number(this.step.value)) &&
      (!wanted || `${sample.prompt}\n${sample.completion}`.toLowerCase().includes(wanted)));
    this.chosen.sort(ORDERS[this.order.value]);
    this.list.replaceChildren(...this.chosen.map((sample, index) => this.makeEntry(sample, index)));
    this.list.scrollTop = 0;
    this.show(0);
  }

  makeEntry(sample, index) {
    const mark = sign(judge(sample));
    const button = make("button", { type: "button", tabindex: "-1" },
      data.runs.length > 1 ? make("i", { class: "swatch", style: `background:${colorOf(sample.run)}` }) : null,
      make("span", { class: "at" }, String(sample.step)),
      make("span", { class: `sign ${mark.name}`, title: mark.name || null }, mark.text),
      make("b", null, format(reward(sample))),
      make("span", { class: "start" }, sample.completion.trim().replace(/\s+/g, " ").slice(0, 90) || "(empty)"));
    button.addEventListener("click", () => this.show(index));
    return make("li", null, button);
  }

  show(place) {
    this.place = place;
    const sample = this.chosen[place];
    this.count.textContent = sample ? `${place + 1} of ${this.chosen.length}` : "0 of 0";
    this.previous.disabled = place <= 0;
    this.next.disabled = place >= this.chosen.length - 1;
    this.list.querySelector("[aria-current]")?.removeAttribute("aria-current");
    if (!sample) return this.detail.replaceChildren(make("p", { class: "empty" }, "No sample fits."));
    const entry = this.list.children[place];
    entry.setAttribute("aria-current", "true");
    // Not scrollIntoView: that would move the page too.
    const room = this.list.clientHeight;
    if (entry.offsetTop < this.list.scrollTop) this.list.scrollTop = entry.offsetTop;
    else if (entry.offsetTop + entry.offsetHeight > this.list.scrollTop + room) this.list.scrollTop = entry.offsetTop + entry.offsetHeight - room;
    this.detail.replaceChildren(...this.describe(sample));
  }

  describe(sample) {
    const mark = sign(judge(sample)), talk = isConversation(sample.messages);
    const calls = talk ? sample.messages.reduce((sum, turn) => sum + (turn.tool_calls ?? []).length, 0) : 0;
    const facts = [
      data.runs.length > 1 ? ["run", data.runs[sample.run].label] : null,
      ["step", String(sample.step)],
      sample.solution === undefined ? null : ["gold answer", String(sample.solution)],
      mark.text ? ["answer", make("span", { class: mark.name }, `${mark.text} ${mark.name}`)] : null,
      sample.reward === undefined && !sample.rewards ? null : ["reward", format(reward(sample))],
      ...Object.entries(sample.rewards ?? {}).map(([name, value]) => [name, value === null ? "does not apply" : format(value)]),
      typeof sample.advantage === "number" ? ["advantage", (sample.advantage > 0 ? "+" : "") + format(sample.advantage)] : null,
      sample.length === undefined ? null : ["length", `${sample.length} tokens`],
      talk ? ["turns", String(sample.messages.filter((turn) => turn.role === "assistant").length)] : null,
      talk && calls ? ["tool calls", String(calls)] : null,
      sample.finish_reason ? ["finish", String(sample.finish_reason)] : null,
      ...Object.entries(sample).filter(([name]) => !SHOWN.has(name)).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]),
      ...Object.entries(sample.rules ?? {}).map(([name, rule]) => [`why ${name}`, String(rule)]),
    ].filter((fact) => fact);
    const open = sample.prompt.trimEnd().endsWith("<think>");
    return [
      make("dl", { class: "facts" }, ...facts.map(([name, value]) => make("div", null, make("dt", null, name), make("dd", null, value)))),
      make("h3", null, "Prompt"), make("pre", { class: "prompt" }, ...colorTags(sample.prompt, false)),
      make("h3", null, talk ? "Conversation" : "Completion"),
      talk ? makeConversation(sample.messages, open, mark.name) : make("pre", { class: "completion" }, ...colorTags(sample.completion, open, mark.name)),
    ];
  }
}
