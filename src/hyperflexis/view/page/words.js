// Numbers as people read them. Nothing here touches the page.

/** A duration: 840 µs, 84 ms, 1.25 s, 3 min 20 s. */
export function seconds(value) {
  const size = Math.abs(value);
  if (size < 1e-9) return "0 s";
  if (size < 1e-3) return `${(value * 1e6).toFixed(0)} µs`;
  if (size < 1) return `${Number((value * 1e3).toPrecision(3))} ms`;
  if (size < 10) return `${value.toFixed(2)} s`;
  if (size < 100) return `${value.toFixed(1)} s`;
  return `${Math.trunc(value / 60)} min ${Math.round(size % 60)} s`;
}

/** What is left of a promise, in words. */
export function slack(value) {
  if (value === null) return "";
  return value < 0 ? `${seconds(-value)} late` : `${seconds(value)} left`;
}

export function percent(share, digits = 1) {
  if (share === null || share === undefined) return "–";
  return `${(share * 100).toFixed(share > 0 && share < 1 ? digits : 0)} %`;
}

export function count(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1);
}

/** How good an attainment is: good, fair or bad. */
export function grade(share) {
  if (share === null) return "";
  if (share >= 0.99) return "good";
  return share >= 0.9 ? "fair" : "bad";
}

/** Tells instants: the time of day where there is one, else time since the beginning. */
export class Clock {
  constructor(wall_s) {
    this.wall_s = wall_s;
  }

  of(at_s) {
    if (this.wall_s === null) return this.since(at_s);
    return new Date((this.wall_s + at_s) * 1e3).toLocaleTimeString("en-GB");
  }

  exact(at_s) {
    if (this.wall_s === null) return `${at_s.toFixed(3)} s`;
    const at = new Date((this.wall_s + at_s) * 1e3);
    return `${at.toLocaleTimeString("en-GB")}.${String(at.getMilliseconds()).padStart(3, "0")}`;
  }

  since(at_s) {
    const whole = Math.max(0, Math.floor(at_s));
    const pair = (value) => String(value).padStart(2, "0");
    const hours = Math.floor(whole / 3600);
    const rest = `${pair(Math.floor(whole / 60) % 60)}:${pair(whole % 60)}`;
    return hours ? `${hours}:${rest}` : rest;
  }
}
