// The fleet as boxes: its level is the KV in use, the line above it how much it computes. Between them, what moves.

import { byId, drawn, element, say, set, vary } from "./elements.js";
import { percent, slack } from "./words.js";

const ROLES = ["prefill", "decode", "mixed"];
const CARDS_MAX = 30;
const TILES_MAX = 90;
const FLOWS_MAX = 60;

export class Fleet {
  constructor(root) {
    this.root = root;
    this.svg = byId("flows");
    this.boxes = new Map();
    this.groups = new Map();
    this.paths = new Map();
    this.pointed = null;
    this.snapshot = null;
    const point = (event) => this.point(event.target.closest?.(".box"));
    for (const kind of ["pointerover", "focusin"]) root.addEventListener(kind, point);
    for (const kind of ["pointerleave", "focusout"]) root.addEventListener(kind, () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(root);
  }

  show(snapshot) {
    this.snapshot = snapshot;
    const all = snapshot.instances;
    set(this.root, "data-size", all.length <= CARDS_MAX ? "card" : all.length <= TILES_MAX ? "tile" : "dot");
    byId("fleet-empty").hidden = all.length > 0;
    const there = new Set(all.map((each) => each.id));
    for (const [id, box] of this.boxes) {
      if (!there.has(id)) {
        box.place.remove();
        this.boxes.delete(id);
      }
    }
    for (const each of all) this.showBox(each);
    for (const role of ROLES) this.showGroup(role, all.filter((each) => each.role === role));
    this.draw();
  }

  showGroup(role, members) {
    const group = this.groups.get(role);
    if (!group) return;
    group.section.hidden = members.length === 0;
    const awake = members.filter((each) => each.state === "ready" || each.state === "draining");
    const load = awake.reduce((sum, each) => sum + each.load, 0) / Math.max(1, awake.length);
    say(group.count, `${members.length}, computing ${percent(load, 0)} of the time`);
  }

  group(role) {
    if (!this.groups.has(role)) {
      const count = element("small");
      const list = element("ul", { class: "boxes" });
      const title = element("h3", {}, role[0].toUpperCase() + role.slice(1), count);
      const section = element("div", { class: "group", data: { role } }, title, list);
      this.groups.set(role, { section, list, count });
      for (const each of ROLES) if (this.groups.has(each)) this.root.append(this.groups.get(each).section);
    }
    return this.groups.get(role);
  }

  showBox(each) {
    const box = this.boxes.get(each.id) ?? this.makeBox(each.id);
    if (box.role !== each.role) {
      box.role = each.role;
      const { list } = this.group(each.role);
      const next = [...list.children].find((other) => Number(other.dataset.id) > each.id);
      list.insertBefore(box.place, next ?? null);
      set(box.button, "data-role", each.role);
    }
    const kv = each.blocks ? each.blocks_used / each.blocks : 0;
    const late = each.slack_s !== null && each.slack_s < 0;
    const work = each.state === "ready" ? `${each.running} running` : each.state;
    const more = each.waiting ? `, ${each.waiting} waiting` : each.standing ? `, ${each.standing} moving` : "";
    set(box.button, "data-state", each.state);
    set(box.button, "data-late", late ? "" : null);
    vary(box.button, "--kv", kv.toFixed(3));
    vary(box.button, "--load", each.load.toFixed(2));
    say(box.slack, each.slack_s === null ? "" : slack(each.slack_s));
    say(box.work, work + more);
    say(box.share, `KV ${percent(kv, 0)}`);
    set(
      box.button,
      "aria-label",
      `i${each.id}, ${each.role}, ${each.state}, computing ${percent(each.load, 0)}, KV ${percent(kv, 0)}, ` +
        `${each.running} running, ${each.waiting} waiting${each.slack_s === null ? "" : `, ${slack(each.slack_s)}`}`,
    );
  }

  makeBox(id) {
    const slackText = element("span", { class: "slack" });
    const work = element("span", { class: "work" });
    const share = element("span", { class: "share" });
    const name = element("span", { class: "name" }, `i${id}`);
    const button = element("button", { class: "box", type: "button", data: { open: `instance/${id}` } }, name, slackText, work, share);
    const place = element("li", { data: { id } }, button);
    const box = { place, button, slack: slackText, work, share, role: null };
    this.boxes.set(id, box);
    return box;
  }

  point(button) {
    const pointed = button ? Number(button.parentElement.dataset.id) : null;
    if (pointed !== this.pointed) {
      this.pointed = pointed;
      this.draw();
    }
  }

  /** What moved a moment ago, and the links of the instance that is pointed at. */
  draw() {
    if (!this.snapshot) return;
    const wanted = new Map();
    for (const [source, target] of this.snapshot.links) {
      if (source === this.pointed || target === this.pointed) wanted.set(`l${source}-${target}`, [source, target, 0]);
    }
    const flows = [...this.snapshot.flows].sort((one, other) => other[2] - one[2]).slice(0, FLOWS_MAX);
    for (const [source, target, moves] of flows) {
      if (this.pointed === null || source === this.pointed || target === this.pointed) {
        wanted.set(`f${source}-${target}`, [source, target, moves]);
      }
    }
    for (const [name, path] of this.paths) {
      if (!wanted.has(name)) {
        path.remove();
        this.paths.delete(name);
      }
    }
    const origin = this.root.getBoundingClientRect();
    for (const [name, [source, target, moves]] of wanted) this.drawPath(name, source, target, moves, origin);
  }

  drawPath(name, source, target, moves, origin) {
    const [from, to] = [this.boxes.get(source), this.boxes.get(target)].map((box) => box?.button.getBoundingClientRect());
    if (!from || !to) return;
    let path = this.paths.get(name);
    if (!path) {
      path = drawn("path", moves ? {} : { class: "link" });
      this.paths.set(name, path);
      this.svg.append(path);
    }
    set(path, "d", curve(from, to, origin));
    if (moves) vary(path, "stroke-width", Math.min(5, 1.6 + Math.sqrt(moves) * 0.6).toFixed(1));
  }
}

/** From the side of one box to the side of another that is nearest, or from below to above. */
function curve(from, to, origin) {
  const middle = (box) => [(box.left + box.right) / 2 - origin.left, (box.top + box.bottom) / 2 - origin.top];
  const [[x0, y0], [x1, y1]] = [middle(from), middle(to)];
  if (from.right <= to.left || to.right <= from.left) {
    const side = from.right <= to.left ? 1 : -1;
    const [ax, bx] = [x0 + (side * from.width) / 2, x1 - (side * to.width) / 2];
    const bend = side * Math.max(18, Math.abs(bx - ax) / 2);
    return `M${ax.toFixed(1)} ${y0.toFixed(1)}C${(ax + bend).toFixed(1)} ${y0.toFixed(1)} ${(bx - bend).toFixed(1)} ${y1.toFixed(1)} ${bx.toFixed(1)} ${y1.toFixed(1)}`;
  }
  const side = y1 >= y0 ? 1 : -1;
  const [ay, by] = [y0 + (side * from.height) / 2, y1 - (side * to.height) / 2];
  const bend = side * Math.max(14, Math.abs(by - ay) / 2);
  return `M${x0.toFixed(1)} ${ay.toFixed(1)}C${x0.toFixed(1)} ${(ay + bend).toFixed(1)} ${x1.toFixed(1)} ${(by - bend).toFixed(1)} ${x1.toFixed(1)} ${by.toFixed(1)}`;
}
