// Numbers and times, as people read them.

const whole = new Intl.NumberFormat("en");
const clockTime = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const dayAndTime = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const count = (n) => whole.format(n);

/** A count of any size in five characters. */
export function short(n) {
  if (n < 10_000) return count(Math.round(n));
  if (n < 999_500) return `${(n / 1e3).toFixed(n < 99_950 ? 1 : 0)}k`;
  return `${(n / 1e6).toFixed(n < 99_950_000 ? 1 : 0)}M`;
}

export const rate = (n) => (n === 0 ? "0" : n < 9.95 ? n.toFixed(1) : short(n));

export const percent = (share) => `${Math.round(share * 100)} %`;

/** Microseconds: `850 µs`, `12 ms`, `1.4 s`, `3 min`. */
export function span(us) {
  if (us < 1_000) return `${Math.round(us)} µs`;
  if (us < 9_950 && us % 1_000 !== 0) return `${(us / 1e3).toFixed(1)} ms`;
  if (us < 999_500) return `${Math.round(us / 1e3)} ms`;
  if (us < 9_950_000 && us % 1_000_000 !== 0) return `${(us / 1e6).toFixed(1)} s`;
  if (us < 59_500_000) return `${Math.round(us / 1e6)} s`;
  const minutes = us / 60e6;
  if (minutes < 59.5) return `${Math.round(minutes)} min`;
  const hours = minutes / 60;
  return hours < 47.5 ? `${Math.round(hours)} h` : `${Math.round(hours / 24)} days`;
}

/** How long ago something was, by the server's clock. */
export const ago = (us, now) => (now - us < 1_500_000 ? "now" : `${span(Math.max(0, now - us))} ago`);

export const clock = (us) => clockTime.format(us / 1e3);
export const moment = (us) => dayAndTime.format(us / 1e3);

export const OUTCOMES = {
  executed: "executed",
  failed: "failed",
  aborted: "aborted",
  dead_lettered: "dead letter",
  superseded: "superseded",
  lost: "lost",
};
