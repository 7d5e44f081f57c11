// The latest decisions in words. What stands there already stays, so that it can be read and clicked.

import { byId, element, linked, opener, say } from "./elements.js";

const SHOWN = {
  all: () => true,
  fleet: (kind) => kind === "fleet" || kind === "lost",
  trouble: (kind) => ["refused", "lost", "broken", "held"].includes(kind),
};

export class Decisions {
  constructor(root) {
    this.root = root;
    this.rows = new Map();
    this.choice = "all";
    byId("kinds").addEventListener("change", (event) => {
      this.choice = event.target.value;
      this.show(this.snapshot, this.clock);
    });
  }

  show(snapshot, clock) {
    [this.snapshot, this.clock] = [snapshot, clock];
    if (!snapshot) return;
    const wanted = snapshot.decisions.filter((each) => SHOWN[this.choice](each.kind));
    const there = new Set(wanted.map((each) => each.number));
    for (const [number, row] of this.rows) {
      if (!there.has(number)) {
        row.remove();
        this.rows.delete(number);
      }
    }
    let before = this.root.firstElementChild;
    for (const each of wanted) {
      const row = this.rows.get(each.number) ?? this.make(each, clock);
      if (row === before) before = before.nextElementSibling;
      else this.root.insertBefore(row, before);
    }
    byId("decisions-empty").hidden = wanted.length > 0;
    say(byId("decisions-empty"), this.choice === "all" ? "Nothing was decided yet." : "None of these lately.");
  }

  make(each, clock) {
    const about = [];
    if (each.request !== null) about.push(opener(`#${each.request}`, `request/${each.request}`), " ");
    else if (each.instance !== null) about.push(opener(`i${each.instance}`, `instance/${each.instance}`), " ");
    const row = element(
      "li",
      { data: { kind: each.kind } },
      element("time", {}, clock.of(each.at_s)),
      element("p", {}, ...about, ...linked(each.text)),
    );
    this.rows.set(each.number, row);
    return row;
  }
}
