// Plays a recording: any instant by the slider, at any speed. Space plays and pauses.

import { byId, say, set } from "./elements.js";
import { ask, Frames, pause } from "./source.js";
import { percent } from "./words.js";

const TICK_MS = 125;
const POLL_MS = 700;
const PLAYED_IN_S = 60;

export class Player {
  constructor(source, clock, onFrame, onHistory) {
    this.step_s = source.step_s;
    this.length_s = source.length_s;
    this.end_s = Math.ceil(source.length_s / source.step_s) * source.step_s; // Of the last frame, which shows the end.
    this.clock = clock;
    this.onFrame = onFrame;
    this.onHistory = onHistory;
    this.frames = new Frames();
    this.at_s = 0;
    this.shown = -1;
    this.isPlaying = false;
    this.slider = byId("slider");
    this.slider.max = Math.round(this.end_s / source.step_s);
    byId("player").hidden = false;
    byId("speed").value = [1, 4, 16, 64].find((speed) => source.length_s / speed <= PLAYED_IN_S) ?? 64;
    byId("play").addEventListener("click", () => this.play(!this.isPlaying));
    this.slider.addEventListener("input", () => this.seek(Number(this.slider.value) * this.step_s));
    document.addEventListener("keydown", (event) => {
      if (event.key === " " && event.target === document.body) {
        event.preventDefault();
        this.play(!this.isPlaying);
      }
    });
  }

  async run(source) {
    this.take(source);
    this.follow(source.is_complete);
    const asked = Number(new URLSearchParams(location.search).get("at"));
    await this.seek(Number.isFinite(asked) ? Math.min(asked, this.end_s) : 0);
    this.play(!new URLSearchParams(location.search).has("at"));
    for (let before = performance.now(); ; ) {
      await pause(TICK_MS);
      const now = performance.now();
      if (this.isPlaying) await this.advance(((now - before) / 1e3) * Number(byId("speed").value));
      before = now;
    }
  }

  /** Ask for what has been read of the journal until all of it has. */
  async follow(isComplete) {
    while (!isComplete) {
      await pause(POLL_MS);
      const source = await ask("source");
      if (source.error) continue;
      this.take(source);
      isComplete = source.is_complete;
    }
  }

  take(source) {
    this.frames.count = source.frames;
    this.isComplete = source.is_complete;
    this.onHistory(source.history);
    this.tell();
  }

  play(isPlaying) {
    if (isPlaying && this.at_s >= this.end_s) this.at_s = 0;
    this.isPlaying = isPlaying;
    say(byId("play"), isPlaying ? "Pause" : "Play");
    set(byId("play"), "aria-pressed", isPlaying);
  }

  async advance(seconds) {
    await this.seek(Math.min(this.at_s + seconds, Math.max(0, this.frames.count - 1) * this.step_s));
    if (this.isComplete && this.at_s >= (this.frames.count - 1) * this.step_s) this.play(false);
  }

  async seek(at_s) {
    this.at_s = at_s;
    const index = Math.max(0, Math.min(Math.round(at_s / this.step_s), this.frames.count - 1));
    this.slider.value = index;
    this.tell();
    if (index === this.shown || !this.frames.count) return;
    const frame = await this.frames.frame(index);
    this.frames.prepare(index + 16);
    if (frame && Number(this.slider.value) === index) {
      this.shown = index;
      this.onFrame(frame);
    }
  }

  tell() {
    const place = `${this.clock.of(Math.min(this.at_s, this.length_s))} of ${this.clock.of(this.length_s)}`;
    const read = this.isComplete ? "" : ` (${percent((this.frames.count * this.step_s) / this.length_s, 0)} read)`;
    say(byId("place"), place + read);
    set(this.slider, "aria-valuetext", place);
  }
}
