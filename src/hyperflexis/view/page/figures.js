// The few figures at the top.

import { element, say } from "./elements.js";
import { count, grade, percent, seconds } from "./words.js";

const TITLES = ["Promises kept", "Running", "Waiting", "Requests / s", "Tokens / s", "Instances", "Cost / hour"];

export class Figures {
  constructor(root) {
    this.figures = TITLES.map((title) => {
      const value = element("dd", {}, "–");
      const more = element("dd", { class: "more" });
      root.append(element("div", { class: "figure" }, element("dt", {}, title), value, more));
      return { value, more };
    });
  }

  show(snapshot) {
    const { cost, queue } = snapshot;
    const ended = snapshot.classes.reduce((sum, each) => sum + each.ended, 0);
    const wanted = cost.wanted !== null && cost.wanted !== cost.awake ? `${cost.wanted} wanted` : "";
    const told = [
      [percent(snapshot.attained), `of ${count(ended)} in 60 s`],
      [count(snapshot.running), ""],
      [count(snapshot.waiting), queue.oldest_s === null ? "" : `oldest ${seconds(queue.oldest_s)}`],
      [count(snapshot.arrivals_per_s), ""],
      [count(snapshot.tokens_per_s), ""],
      [count(cost.awake), [wanted, cost.asleep ? `${cost.asleep} asleep` : ""].filter(Boolean).join(", ")],
      [cost.per_hour.toFixed(2), `${cost.so_far.toFixed(2)} so far`],
    ];
    told.forEach(([value, more], index) => {
      say(this.figures[index].value, value);
      say(this.figures[index].more, more);
    });
    this.figures[0].value.className = grade(snapshot.attained);
  }
}
