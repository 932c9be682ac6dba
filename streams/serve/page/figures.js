// Numbers, times and states, as people read them. Nothing here knows of the page.

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const number = (value) => (value === null || value === undefined ? "–" : whole.format(Math.round(value)));
export const compact = (value) => (value < 100000 ? whole.format(Math.round(value)) : short.format(value));

export function bytes(value) {
  if (value === null || value === undefined) return "unknown";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) [value, at] = [value / 1024, at + 1];
  return `${at ? value.toFixed(1) : value} ${units[at]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !isFinite(seconds)) return "–";
  if (seconds < 60) return `${seconds < 10 && seconds > 0 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const total = Math.round(seconds);
  const [days, hours, minutes] = [Math.floor(total / 86400), Math.floor(total / 3600) % 24, Math.floor(total / 60) % 60];
  const two = (value) => String(value).padStart(2, "0");
  const clock = hours || days ? `${hours}:${two(minutes)}:${two(total % 60)}` : `${minutes}:${two(total % 60)}`;
  return days ? `${days} d ${clock}` : clock;
}

export const clock = (text) => (text ? new Date(text).toLocaleString() : "–");

// Never rounds up: 100 % is written only where it is true.
export const percent = (value) => (value === null || value === undefined ? "–" : `${(Math.floor(value * 10) / 10).toFixed(1)} %`);

// What is left, at the slowest and at the fastest rate of the last minute.
export function etaRange(samples) {
  const last = samples[samples.length - 1];
  if (!last || samples.length < 3) return null;
  const rates = [10, 30, 60]
    .map((span) => samples.find((one) => last.at - one.at <= span))
    .filter((one) => one && last.at - one.at >= 2 && one.left > last.left)
    .map((one) => (one.left - last.left) / (last.at - one.at));
  if (!rates.length) return null;
  return [last.left / Math.max(...rates), last.left / Math.min(...rates)];
}

export function sumOf(generation, field) {
  return generation.partitions.reduce((sum, one) => sum + one[field], 0);
}

export function stateOf(projection) {
  const live = projection.generations[projection.active];
  if (!live) return ["bad", projection.error || "it has no generation yet"];
  if (live.halted) return ["bad", `${projection.active} is halted`];
  const stuck = live.partitions.filter((one) => one.why).length;
  if (stuck) return ["bad", `${stuck} of ${live.partitions.length} partitions are not folded`];
  if (live.partitions_not_folded) return ["bad", `${live.partitions_not_folded} added partitions are not folded`];
  const rebuild = projection.rebuild;
  if (rebuild && rebuild.outcome === "running") {
    const green = projection.generations[rebuild.generation];
    if (rebuild.is_paused) return ["warn", `rebuild ${rebuild.generation} is paused`];
    if (green && green.phase === "waiting") return ["warn", `${rebuild.generation} waits for approval`];
    return ["", `${rebuild.generation} is ${green ? green.phase : "being made"}`];
  }
  const letters = sumOf(live, "dead_letters");
  if (letters) return ["warn", `${number(letters)} dead letters wait`];
  if (live.partitions.some((one) => !one.owner)) return ["warn", "some partitions have no owner"];
  return ["good", "live"];
}
