// Where snapshots come from: the stream of a running server, or the frames of a recording.

const RETRY_MS = [500, 1000, 2000, 5000];
const FRAMES_KEPT = 320;

/** JSON, also that of a refusal. */
export async function ask(path) {
  try {
    return await (await fetch(`dashboard/${path}`)).json();
  } catch (error) {
    return { error: { message: String(error.message ?? error) } };
  }
}

/** Follows a server for ever. Read with fetch: of several events that came at once EventSource would hand out each. */
export class Live {
  constructor(onSnapshot, onState) {
    this.onSnapshot = onSnapshot;
    this.onState = onState;
  }

  async run() {
    for (let failures = 0; ; ) {
      try {
        const answer = await fetch("dashboard/events");
        if (!answer.ok) throw new Error(`status ${answer.status}`);
        failures = 0;
        await this.read(answer.body.getReader());
      } catch {
        // Said below, whatever it was.
      }
      this.onState("lost");
      await pause(RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
    }
  }

  async read(reader) {
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const events = rest.split("\n\n");
      rest = events.pop();
      const last = events.pop(); // Of several that came at once the newest says it all.
      if (last) this.onSnapshot(JSON.parse(last.slice("data: ".length)));
    }
  }
}

/** The frames of a recording, some of them kept. */
export class Frames {
  constructor() {
    this.kept = new Map();
    this.asked = new Map();
    this.count = 0;
  }

  async frame(index) {
    if (!this.kept.has(index)) await this.load(index);
    return this.kept.get(index);
  }

  /** Have those that are played next. */
  prepare(index) {
    if (index < this.count && !this.kept.has(index)) this.load(index);
  }

  load(index) {
    if (!this.asked.has(index)) {
      const asked = ask(`frames/${index}`).then((frames) => {
        this.asked.delete(index);
        if (Array.isArray(frames)) frames.forEach((frame, place) => this.keep(index + place, frame));
        return frames.length ?? 0;
      });
      this.asked.set(index, asked);
    }
    return this.asked.get(index);
  }

  keep(index, frame) {
    this.kept.set(index, frame);
    if (this.kept.size > FRAMES_KEPT) this.kept.delete(this.kept.keys().next().value);
  }
}

export const pause = (ms) => new Promise((done) => setTimeout(done, ms));
