// Puts the page together: one source of snapshots, and what draws them.

import { Charts } from "./charts.js";
import { Classes } from "./classes.js";
import { Decisions } from "./decisions.js";
import { byId, say, set } from "./elements.js";
import { Figures } from "./figures.js";
import { Fleet } from "./fleet.js";
import { Player } from "./player.js";
import { Queue } from "./queue.js";
import { ask, Live, pause } from "./source.js";
import { Story } from "./story.js";
import { Clock } from "./words.js";

const STATES = { waiting: "connecting", live: "live", lost: "connection lost", recorded: "recording", blind: "cannot follow the fleet any more: see the log" };

function tellState(state) {
  say(byId("status"), STATES[state]);
  set(byId("status"), "data-state", state);
}

function wireForm() {
  byId("find").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = byId("find-name").value.trim();
    if (/^i\d+$/.test(name)) location.hash = `instance/${name.slice(1)}`;
    else if (name) location.hash = `request/${encodeURIComponent(name.replace(/^#/, ""))}`;
  });
}

/** What is shown; asked for until somebody answers. */
async function found() {
  for (;;) {
    const source = await ask("source");
    if (!source.error) return source;
    tellState("lost");
    await pause(1000);
  }
}

async function main() {
  wireForm();
  const source = await found();
  const clock = new Clock(source.wall_s);
  const views = [new Figures(byId("figures")), new Fleet(byId("fleet")), new Classes(byId("classes")), new Queue()];
  const decisions = new Decisions(byId("decisions"));
  const charts = new Charts(byId("charts"), clock);
  const story = new Story(clock);
  const show = (snapshot) => {
    for (const view of views) view.show(snapshot);
    decisions.show(snapshot, clock);
    charts.add(snapshot.samples);
    charts.show(snapshot);
    story.show(snapshot);
    say(byId("clock"), clock.of(snapshot.now_s));
  };
  say(byId("model"), source.model || source.policy || "");
  if (source.kind === "recorded") {
    charts.isRecorded = story.isRecorded = true;
    tellState("recorded");
    await new Player(source, clock, show, (history) => charts.begin(history)).run(source);
  } else {
    charts.begin(source.history);
    const follow = (snapshot) => {
      show(snapshot);
      tellState(snapshot.is_blind ? "blind" : "live");
    };
    await new Live(follow, tellState).run();
  }
}

main();
