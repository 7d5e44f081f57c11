// History: four small charts over one time. Samples are arrays; `Sample` in view/snapshot.py says what stands where.

import { byId, drawn, element, say, set, vary } from "./elements.js";
import { colourOf } from "./classes.js";
import { count, percent } from "./words.js";

const [AT, ARRIVALS, TOKENS, WAITING, RUNNING, AWAKE, ASLEEP, COST, ATTAINED] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
const WIDTH = 600;
const HEIGHT = 118;
const SAMPLES_MAX = 600;

const CHARTS = [
  { title: "Promises kept", top: 1, bottom: floor, format: (value) => percent(value), series: (names) => names.map((name, index) => ({ name, colour: colourOf(index), value: (sample) => sample[ATTAINED][index] ?? null })) },
  { title: "Requests", format: count, series: () => [
    { name: "running", colour: "var(--c2)", value: (sample) => sample[RUNNING], isArea: true },
    { name: "waiting", colour: "var(--c1)", value: (sample) => sample[WAITING], isArea: true },
  ] },
  { title: "Tokens / s", format: count, series: () => [{ name: "of answers", colour: "var(--c0)", value: (sample) => sample[TOKENS], isArea: true }] },
  { title: "Instances", format: count, series: (names, hasSleepers) => [
    { name: "awake", colour: "var(--c4)", value: (sample) => sample[AWAKE], isArea: true, isStep: true },
    ...(hasSleepers ? [{ name: "asleep", colour: "var(--c6)", value: (sample) => sample[ASLEEP], isStep: true }] : []),
  ] , more: (sample) => `cost ${sample[COST].toFixed(2)} / hour` },
];

export class Charts {
  constructor(root, clock) {
    this.clock = clock;
    this.samples = [];
    this.isRecorded = false;
    this.pointed = null;
    this.charts = CHARTS.map((spec) => this.make(spec, root));
  }

  /** All of history, as it is at the beginning, or of a recording. */
  begin(samples) {
    this.samples = samples;
  }

  add(samples) {
    const last = this.samples.at(-1)?.[AT] ?? -1;
    for (const sample of samples) if (sample[AT] > last) this.samples.push(sample);
    if (this.samples.length > SAMPLES_MAX) this.samples.splice(0, this.samples.length - SAMPLES_MAX);
  }

  show(snapshot) {
    this.snapshot = snapshot;
    if (this.samples.length < 2) return;
    const names = snapshot.classes.map((each) => each.name);
    const hasSleepers = this.samples.some((sample) => sample[ASLEEP] > 0);
    const [first, last] = [this.samples[0][AT], this.samples.at(-1)[AT]];
    say(byId("history-span"), `${this.clock.of(first)} – ${this.clock.of(last)}`);
    for (const chart of this.charts) this.draw(chart, chart.spec.series(names, hasSleepers), first, last);
  }

  make(spec, root) {
    const values = element("span");
    const caption = element("figcaption", {}, element("span", { class: "title" }, spec.title), values);
    const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    for (const share of [0.01, 0.5]) {
      const y = (HEIGHT * share).toFixed(1);
      svg.append(drawn("line", { class: "rule", x1: 0, x2: WIDTH, y1: y, y2: y }));
    }
    const lines = drawn("g");
    const head = drawn("line", { class: "head", y1: 0, y2: HEIGHT });
    svg.append(lines, head);
    const axis = element("div", { class: "axis", "aria-hidden": "true" }, element("span"), element("span"), element("span"));
    const topText = element("span", { class: "most", "aria-hidden": "true" });
    root.append(element("figure", { class: "chart" }, caption, element("div", { class: "plot" }, svg, topText), axis));
    svg.addEventListener("pointermove", (event) => this.point((event.offsetX / svg.clientWidth) || 0));
    svg.addEventListener("pointerleave", () => this.point(null));
    caption.replaceChild(values, caption.lastChild);
    return { spec, svg, lines, head, axis, caption, topText, paths: [], values: [] };
  }

  point(share) {
    this.pointed = share;
    if (this.snapshot) this.show(this.snapshot);
  }

  /** The sample whose values are told: the one pointed at, else that of the present. */
  told(first, last) {
    const at_s = this.pointed !== null ? first + this.pointed * (last - first) : this.isRecorded ? this.snapshot.now_s : last;
    let [low, high] = [0, this.samples.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.samples[middle][AT] <= at_s) low = middle;
      else high = middle - 1;
    }
    return this.samples[low];
  }

  draw(chart, series, first, last) {
    const { spec } = chart;
    const known = series.flatMap((each) => this.samples.map(each.value)).filter((value) => value !== null);
    const top = spec.top ?? nice(known.reduce((most, value) => Math.max(most, value), 0));
    const bottom = spec.bottom?.(known.reduce((least, value) => Math.min(least, value), top)) ?? 0;
    const x = (sample) => ((sample[AT] - first) / (last - first || 1)) * WIDTH;
    const y = (value) => HEIGHT - ((value - bottom) / (top - bottom)) * (HEIGHT - 2);
    this.fit(chart, series.length);
    const told = this.told(first, last);
    const words = series.map((each, index) => {
      const [area, line] = chart.paths[index];
      const text = path(this.samples, each, x, y);
      for (const shape of [area, line]) vary(shape, "--colour", each.colour);
      set(line, "d", text.line);
      set(area, "d", each.isArea ? text.area : "");
      const value = each.value(told);
      const word = `${each.name} ${value === null ? "–" : spec.format(value)}`;
      say(chart.values[index], word);
      vary(chart.values[index], "--colour", each.colour);
      return word;
    });
    const more = spec.more?.(told) ?? "";
    say(chart.more, more);
    const isMarked = this.pointed !== null || this.isRecorded;
    set(chart.head, "visibility", isMarked ? "visible" : "hidden");
    for (const end of ["x1", "x2"]) set(chart.head, end, x(told).toFixed(1));
    set(chart.svg, "aria-label", `${spec.title}: ${[...words, more].filter(Boolean).join(", ")}`);
    const labels = [first, (first + last) / 2, last].map((at_s) => this.clock.of(at_s));
    labels.forEach((label, index) => say(chart.axis.children[index], label));
    say(chart.topText, bottom ? `${spec.format(bottom)} to ${spec.format(top)}` : spec.format(top));
  }

  fit(chart, wanted) {
    if (!chart.more) {
      chart.more = element("span", { class: "aside" });
      chart.caption.append(chart.more);
    }
    while (chart.paths.length < wanted) {
      const pair = [drawn("path", { class: "area" }), drawn("path", { class: "line" })];
      chart.lines.append(...pair);
      chart.paths.push(pair);
      const value = element("span", { class: "value" });
      chart.caption.insertBefore(value, chart.more);
      chart.values.push(value);
    }
  }
}

/** A line through what is known, and the area below it. */
function path(samples, series, x, y) {
  let line = "";
  let area = "";
  let start = null;
  let previous = null;
  const close = (end) => (start === null ? "" : `L${end.toFixed(1)} ${HEIGHT}L${start.toFixed(1)} ${HEIGHT}Z`);
  let run = "";
  for (const sample of samples) {
    const value = series.value(sample);
    if (value === null) {
      if (start !== null) area += run + close(previous[0]);
      [start, previous, run] = [null, null, ""];
      continue;
    }
    const at = [x(sample), y(value)];
    const step = series.isStep && previous ? `L${at[0].toFixed(1)} ${previous[1].toFixed(1)}` : "";
    run += `${step}${start === null ? "M" : "L"}${at[0].toFixed(1)} ${at[1].toFixed(1)}`;
    line += `${step}${start === null ? "M" : "L"}${at[0].toFixed(1)} ${at[1].toFixed(1)}`;
    if (start === null) start = at[0];
    previous = at;
  }
  if (start !== null) area += run + close(previous[0]);
  return { line, area };
}

/** Where a chart of shares begins: near 1 what differs is small. */
function floor(least) {
  return [0.9, 0.8, 0.5].find((share) => least >= share) ?? 0;
}

/** The next number with one digit that counts: what a chart goes up to. */
function nice(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 6, 8, 10].find((digit) => digit * power >= value) * power;
}
