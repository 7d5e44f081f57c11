// Service classes: what was kept lately, and how long things took against what was promised.

import { element, say, set, vary } from "./elements.js";
import { count, grade, percent, seconds } from "./words.js";

const METRICS = ["ttft", "tpot", "e2e"];
const COLOURS = 8;

export const colourOf = (index) => `var(--c${index % COLOURS})`;

export class Classes {
  constructor(root) {
    this.root = root;
    this.cards = new Map();
  }

  show(snapshot) {
    snapshot.classes.forEach((each, index) => this.showCard(each, index));
  }

  showCard(each, index) {
    const card = this.cards.get(each.name) ?? this.makeCard(each.name, index);
    const nothing = each.ended_total + each.waiting + each.running === 0;
    card.section.hidden = nothing && each.name === "default";
    say(card.share, percent(each.attained));
    card.share.className = `share ${grade(each.attained)}`;
    const refused = each.refused_total ? `, ${count(each.refused_total)} refused in all` : "";
    say(card.words, `priority ${each.priority}`);
    say(card.work, `${each.running} running, ${each.waiting} waiting, ${count(each.ended)} ended${refused}`);
    for (const name of METRICS) showMetric(card.metrics[name], name, each[name]);
  }

  makeCard(name, index) {
    const words = element("span", { class: "small" });
    const share = element("span", { class: "share" });
    const work = element("p", { class: "small" });
    const metrics = Object.fromEntries(METRICS.map((each) => [each, makeMetric(each)]));
    const head = element("header", {}, element("h3", {}, name), words, share);
    const section = element("article", { class: "class" }, head, work, ...METRICS.map((each) => metrics[each].root));
    vary(section, "--colour", colourOf(index));
    this.root.append(section);
    const card = { section, words, share, work, metrics };
    this.cards.set(name, card);
    return card;
  }
}

function makeMetric(name) {
  const target = element("b");
  const bullet = element("div", { class: "bullet", role: "img", "aria-label": name }, element("i"), element("i"), target);
  const words = element("span", { class: "words" });
  return { root: element("div", { class: "metric" }, element("span", { class: "label" }, name), bullet, words), bullet, target, words };
}

/** A bar to the median and a paler one to the 95th percentile; the line in the middle is the target. */
function showMetric(metric, name, times) {
  const isShown = times.target_s !== null || (name !== "e2e" && times.p50_s !== null);
  metric.root.hidden = !isShown;
  if (!isShown) return;
  metric.target.hidden = times.target_s === null;
  const scale = times.target_s === null ? 2 * (times.p95_s ?? 1) : 2 * times.target_s;
  vary(metric.bullet, "--p50", Math.min(1, (times.p50_s ?? 0) / scale).toFixed(3));
  vary(metric.bullet, "--p95", Math.min(1, (times.p95_s ?? 0) / scale).toFixed(3));
  const promised = times.target_s === null ? "" : `, promised ${seconds(times.target_s)}`;
  const took = times.p50_s === null ? "none ended yet" : `p50 ${seconds(times.p50_s)}, p95 ${seconds(times.p95_s)}`;
  say(metric.words, took + promised);
  set(metric.bullet, "aria-label", `${name}: ${took}${promised}`);
}
