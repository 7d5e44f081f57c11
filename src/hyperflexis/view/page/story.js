// The story of a request or an instance, beside the page. Its name stands in the address: it can be linked to.

import { ask } from "./source.js";
import { byId, element, linked, say } from "./elements.js";
import { row } from "./queue.js";
import { percent, seconds, slack } from "./words.js";

const REFRESH_MS = 1000;

export class Story {
  constructor(clock) {
    this.clock = clock;
    this.dialog = byId("story");
    this.body = byId("story-body");
    this.target = null;
    this.asked_ms = 0;
    this.isRecorded = false;
    document.addEventListener("click", (event) => {
      const target = event.target.closest?.("[data-open]")?.dataset.open;
      if (target) location.hash = target;
    });
    byId("story-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("close", () => {
      this.target = null;
      history.replaceState(null, "", location.pathname + location.search);
    });
    window.addEventListener("hashchange", () => this.open(location.hash.slice(1)));
    this.open(location.hash.slice(1));
  }

  show(snapshot) {
    this.snapshot = snapshot;
    if (this.target && !this.isRecorded && performance.now() > this.asked_ms + REFRESH_MS) this.load();
  }

  async open(target) {
    const [kind, name] = target.split("/");
    if (!name || !["request", "instance"].includes(kind)) return;
    this.target = { kind, name: decodeURIComponent(name) };
    say(byId("story-title"), kind === "request" ? `Request ${this.target.name}` : `Instance i${this.target.name}`);
    this.body.replaceChildren(element("p", { class: "empty" }, "…"));
    if (!this.dialog.open) this.dialog.showModal();
    await this.load();
  }

  async load() {
    this.asked_ms = performance.now();
    const { kind, name } = this.target;
    const told = await ask(kind === "request" ? `requests/${encodeURIComponent(name)}` : `instances/i${encodeURIComponent(name)}`);
    if (this.target?.name !== name || this.target.kind !== kind) return;
    if (told.error) this.body.replaceChildren(element("p", { class: "empty" }, told.error.message));
    else if (kind === "request") this.body.replaceChildren(...told.flatMap((each) => this.request(each)));
    else this.body.replaceChildren(...this.instance(told));
  }

  request(story) {
    const since = (at_s) => (story.arrived_s === null ? "" : `, +${seconds(at_s - story.arrived_s)}`);
    const id = story.name ? `#${story.request}, ${story.name}` : `#${story.request}`;
    return [element("p", { class: "ending" }, story.ending), element("p", { class: "id" }, id), this.chapters(story.chapters, since)];
  }

  instance(story) {
    const now = this.snapshot?.instances.find((each) => each.id === story.instance);
    const parts = [now ? facts(now) : element("p", { class: "empty" }, "It is not there at this instant.")];
    if (story.requests.length) {
      parts.push(element("h3", {}, "Its requests, the tightest first"), element("ol", { class: "rows" }, ...story.requests.map(row)));
    } else if (now?.tightest !== null && now) {
      const tightest = { request: now.tightest, service_class: "the tightest of its requests", instance: now.id, age_s: 0, slack_s: now.slack_s };
      parts.push(element("h3", {}, "Its requests"), element("ol", { class: "rows" }, shortRow(tightest)));
    }
    parts.push(element("h3", {}, "What happened to it"), this.chapters([...story.chapters].reverse(), () => ""));
    return parts;
  }

  chapters(chapters, since) {
    const now_s = this.snapshot?.now_s ?? Infinity;
    return element(
      "ol",
      { class: "chapters" },
      ...chapters.map((each) =>
        element(
          "li",
          { class: this.isRecorded && each.at_s > now_s ? "later" : "" },
          element("time", {}, this.clock.exact(each.at_s) + since(each.at_s)),
          element("span", {}, ...linked(each.text)),
        ),
      ),
    );
  }
}

function shortRow(each) {
  const made = row(each);
  say(made.children[1], each.service_class);
  return made;
}

function facts(each) {
  const kv = each.blocks ? each.blocks_used / each.blocks : 0;
  const told = [
    ["Role", each.role],
    ["State", each.state],
    ["Computing", percent(each.load, 0)],
    ["KV in use", `${percent(kv, 0)} of ${each.blocks}`],
    ["Running", String(each.running)],
    ["Waiting", String(each.waiting)],
    ["Linked with", String(each.links)],
    ["Tightest promise", each.slack_s === null ? "–" : slack(each.slack_s)],
  ];
  return element("dl", { class: "facts" }, ...told.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}
