// What waits for a token: how much of each class, and the requests with the least time left.

import { byId, element, opener, say, set, vary } from "./elements.js";
import { colourOf } from "./classes.js";
import { seconds, slack } from "./words.js";

export class Queue {
  constructor() {
    this.bar = byId("queue-bar");
    this.list = byId("queue-list");
  }

  show(snapshot) {
    const { queue } = snapshot;
    const held = queue.held ? `${queue.held} held, ` : "";
    say(byId("queue-count"), `${held}${queue.waiting} at instances`);
    byId("queue-empty").hidden = queue.tightest.length > 0;
    this.showBar(snapshot.classes);
    this.list.replaceChildren(...queue.tightest.map(row));
  }

  showBar(classes) {
    while (this.bar.children.length < classes.length) {
      const part = element("i");
      vary(part, "--colour", colourOf(this.bar.children.length));
      this.bar.append(part);
    }
    classes.forEach((each, index) => vary(this.bar.children[index], "--count", each.waiting));
    const waiting = classes.filter((each) => each.waiting).map((each) => `${each.waiting} of ${each.name}`);
    set(this.bar, "aria-label", waiting.length ? `Waiting: ${waiting.join(", ")}` : "Nothing waits");
  }
}

/** One request that waits. */
export function row(each) {
  const where = each.instance === null ? "held" : `at i${each.instance}`;
  const left = element("span", { class: each.slack_s !== null && each.slack_s < 0 ? "bad" : "" }, slack(each.slack_s));
  const words = `${each.service_class}, ${where}, ${seconds(each.age_s)} old`;
  return element("li", {}, opener(`#${each.request}`, `request/${each.request}`), element("span", { class: "where" }, words), left);
}
