// The page: projections, their lag and rebuilds, and commands for those who have a token. All text goes into the page as
// text: what models and errors say is never markup.

import { h, render } from "./vendor/preact.js";
import htm from "./vendor/htm.js";
import { Feed, ask } from "./feed.js";
import { bytes, clock, compact, duration, etaRange, number, percent, stateOf, sumOf } from "./figures.js";

const html = htm.bind(h);
const KEPT_S = 900;

const state = {
  standing: null,
  history: {}, // by generation and partition: [[seconds since 1970, lag], …]
  left: {}, // by rebuild: what was left of it, for the last minute
  reports: {}, // by generation
  opened: {}, // by generation: whether somebody opened or closed it
  link: ["lost", "connecting"],
  token: "",
  who: "",
  dialog: null,
  told: {},
};
let feed;

function start() {
  feed?.stop();
  feed = new Feed(state.token, heard, (kind, why) => {
    state.link = [kind, why];
    draw();
  });
}

function heard(name, data) {
  if (name === "history") state.history = data;
  if (name === "standing") {
    state.standing = data;
    const at = Date.parse(data.at) / 1000;
    for (const projection of Object.values(data.projections)) noteLags(projection, at);
    for (const [name_, projection] of Object.entries(data.projections)) noteRebuild(name_, projection, at);
  }
  draw();
}

function noteLags(projection, at) {
  for (const [id, one] of Object.entries(projection.generations)) {
    const kept = (state.history[id] ??= {});
    for (const part of one.partitions) {
      const points = (kept[part.partition] ??= []);
      if (points.length && at - points[points.length - 1][0] < 2) continue;
      points.push([at, part.lag]);
      while (points.length && at - points[0][0] > KEPT_S) points.shift();
    }
  }
}

function noteRebuild(name, projection, at) {
  const { rebuild, progress } = projection;
  if (!rebuild) return;
  const green = projection.generations[rebuild.generation];
  const phase = rebuild.outcome === "running" ? (green ? green.phase : "being made") : rebuild.outcome;
  const now = `${rebuild.generation}: ${rebuild.is_paused ? "paused" : phase}`;
  if (state.told[name] !== now) {
    if (name in state.told) document.getElementById("said").textContent = `${name}: ${now}`;
    state.told[name] = now;
  }
  const samples = (state.left[rebuild.id] ??= []);
  if (progress && rebuild.outcome === "running") samples.push({ at, left: progress.remaining_offsets });
  while (samples.length && at - samples[0].at > 60) samples.shift();
  if (rebuild.report && state.reports[rebuild.generation]?.at !== rebuild.report.at) {
    state.reports[rebuild.generation] = { at: rebuild.report.at };
    ask(state.token, `/v1/projections/${encodeURIComponent(name)}/report?generation=${encodeURIComponent(rebuild.generation)}`)
      .then((found) => (state.reports[rebuild.generation] = { at: rebuild.report.at, found }))
      .catch((error) => (state.reports[rebuild.generation] = { at: rebuild.report.at, why: error.message }))
      .finally(draw);
  }
}

// Drawing

function summed(parts) {
  const byTime = new Map();
  for (const points of Object.values(parts)) for (const [at, lag] of points) byTime.set(Math.round(at / 2), (byTime.get(Math.round(at / 2)) || 0) + lag);
  return [...byTime].sort((a, b) => a[0] - b[0]).map(([at, lag]) => [at * 2, lag]);
}

// Before it was active, a generation's lag was that of a replay, which no reader saw.
function lagsOf(projection, live) {
  const since = Date.parse(live.since) / 1000;
  return summed(state.history[projection.active] || {}).filter(([at]) => at >= since);
}

function Lag({ name, points }) {
  const highest = Math.max(0, ...points.map(([, lag]) => lag));
  return html`<figure><${Curve} kind="lag" name="Lag of ${name}" points=${points} />
    <figcaption><span>15 minutes ago</span><span>lag in records, at most ${compact(highest)}</span><span>now</span></figcaption></figure>`;
}

function Curve({ points, name, kind }) {
  const [width, height] = kind === "spark" ? [96, 24] : [600, 96];
  const now = points.length ? points[points.length - 1][0] : 0;
  const highest = Math.max(1, ...points.map(([, lag]) => lag));
  const at = ([time, lag]) => `${(width * (1 - (now - time) / KEPT_S)).toFixed(1)},${(height - 1 - (height - 4) * (lag / highest)).toFixed(1)}`;
  const line = points.map(at).join(" ");
  const first = points.length ? at(points[0]).split(",")[0] : width;
  const last = points.length ? points[points.length - 1][1] : 0;
  const said = `${name} over the last 15 minutes: ${number(last)} records now, ${number(highest === 1 && !last ? 0 : highest)} at most`;
  return html`<svg class=${kind} viewBox="0 0 ${width} ${height}" preserveAspectRatio="none" role="img" aria-label=${said}>
    <line class="base" x1="0" x2=${width} y1=${height - 1} y2=${height - 1} />
    ${points.length > 1 && html`<polygon class="area" points="${first},${height - 1} ${line} ${width},${height - 1}" /><polyline class="curve" points=${line} />`}
  </svg>`;
}

function Page() {
  const { standing, link } = state;
  return html`
    <header>
      <h1>Refold</h1>
      ${standing && html`<span class="quiet">worker ${standing.worker.name} at ${standing.worker.address}, ${standing.worker.is_leader ? "which leads" : "which follows"}, fleet ${standing.worker.namespace}</span>`}
      <span class="grow"></span>
      <${Link} link=${link} />
      ${standing?.commands.are_taken && (state.who ? html`<span class="quiet">as ${state.who}</span><button onClick=${signOut}>Sign out</button>` : html`<button onClick=${() => open({ kind: "token" })}>Sign in</button>`)}
      ${link[0] === "denied" && !standing && html`<button class="main" onClick=${() => open({ kind: "token" })}>Sign in</button>`}
    </header>
    <main>
      ${link[0] === "denied" && html`<p class="note">${link[1]}</p>`}
      ${standing && html`<${Troubles} standing=${standing} />`}
      ${standing && Object.entries(standing.projections).map(([name, one]) => html`<${Projection} key=${name} name=${name} projection=${one} />`)}
    </main>
    ${state.dialog && html`<${Dialog} dialog=${state.dialog} />`}
  `;
}

function Link({ link: [kind, why] }) {
  const standing = state.standing;
  if (kind === "live") return html`<span class="pill good" title="as of ${clock(standing?.at)}">live</span>`;
  const since = standing ? `, as of ${clock(standing.at)}` : "";
  return html`<span class="pill ${kind === "denied" ? "warn" : "bad"}">${kind === "denied" ? "not signed in" : `not live (${why})${since}`}</span>`;
}

function Troubles({ standing: { worker, commands } }) {
  const said = [...worker.faults];
  if (worker.kafka) said.push(worker.kafka);
  if (worker.not_a_member) said.push(worker.not_a_member);
  if (worker.is_draining) said.push("This worker is about to end.");
  return html`${said.map((one) => html`<p class="note bad" key=${one}>${one}</p>`)}
    ${commands.port && html`<p class="note">Commands are taken at port ${commands.port} of this worker.</p>`}`;
}

function Projection({ name, projection }) {
  const live = projection.generations[projection.active];
  const [kind, said] = stateOf(projection);
  return html`<section aria-labelledby="p-${name}">
    <div class="head">
      <h2 id="p-${name}">${name}</h2>
      <span class="pill ${kind}">${said}</span>
      <span class="quiet">${projection.active} is active</span>
      <span class="grow"></span>
      <${Buttons} name=${name} projection=${projection} />
    </div>
    ${projection.error && html`<p class="note bad">${projection.error}</p>`}
    ${live?.halted && html`<p class="note bad">${live.halted}</p>`}
    ${projection.waiting && html`<p class="note">Code of version ${projection.waiting.version} waits since ${clock(projection.waiting.since)}, of ${projection.waiting.by}: a rebuild makes its models beside those that are live.</p>`}
    ${live && html`<${Figures} live=${live} />`}
    ${live && sumOf(live, "dead_letters") > 0 && html`<p class="note">Events of ${projection.active} could not be folded, and later events of their models wait behind them: <code>refold dead-letters ${name}</code> says which, and why.</p>`}
    ${live && html`<${Lag} name=${name} points=${lagsOf(projection, live)} />`}
    ${projection.rebuild && html`<${Rebuild} name=${name} projection=${projection} />`}
    ${Object.entries(projection.generations).map(([id, one]) => html`<${Generation} key=${id} id=${id} one=${one} isActive=${id === projection.active} />`)}
  </section>`;
}

function Figures({ live }) {
  const [letters, skipped] = [sumOf(live, "dead_letters"), sumOf(live, "skipped")];
  const owners = new Set(live.partitions.map((one) => one.owner).filter(Boolean));
  return html`<dl class="figures">
    <div><dt>lag, records</dt><dd>${number(live.lag)}</dd></div>
    <div><dt>behind</dt><dd>${live.lag ? duration(live.lag_seconds) : "–"}</dd></div>
    <div><dt>models</dt><dd>${compact(sumOf(live, "models"))}</dd></div>
    <div><dt>events folded</dt><dd>${compact(sumOf(live, "events"))}</dd></div>
    <div><dt>partitions</dt><dd>${live.partitions.length}</dd></div>
    <div><dt>agents</dt><dd>${owners.size}</dd></div>
    ${letters > 0 && html`<div><dt>dead letters</dt><dd class="warn">${number(letters)}</dd></div>`}
    ${skipped > 0 && html`<div><dt>skipped</dt><dd class="warn">${number(skipped)}</dd></div>`}
  </dl>`;
}

function unfolded({ dead_letters: letters, skipped }) {
  const parts = [letters && `${number(letters)} dead letters`, skipped && `${number(skipped)} skipped`].filter(Boolean);
  return parts.length ? `, with ${parts.join(" and ")}` : "";
}

function Rebuild({ name, projection }) {
  const { rebuild, progress } = projection;
  const running = rebuild.outcome === "running";
  const green = projection.generations[rebuild.generation];
  const range = running && progress ? etaRange(state.left[rebuild.id] || []) : null;
  const ended = running ? "" : `, ${rebuild.outcome} ${clock(rebuild.ended_at)}${unfolded(rebuild)}`;
  const isReplaying = running && green && ["new", "repartitioning", "replaying"].includes(green.phase);
  const share = progress ? progress.percent : green && !isReplaying ? 100 : null;
  return html`<div class="rebuild">
    <h3>${running ? "Rebuild" : "Last rebuild"} ${rebuild.generation}${rebuild.is_in_place ? " in place" : ` beside ${rebuild.replaces}`}${ended}</h3>
    ${running && html`<progress max="100" value=${share ?? 0} aria-label="Rebuild of ${name}"></progress>
      <dl class="figures">
        <div><dt>done</dt><dd class="share">${percent(share)}</dd></div>
        <div><dt>it is</dt><dd>${rebuild.is_paused ? "paused" : green ? green.phase : "being made"}</dd></div>
        <div><dt>events</dt><dd>${progress ? compact(progress.events) : "–"}</dd></div>
        <div><dt>events/s</dt><dd>${progress ? number(progress.events_per_second) : "–"}</dd></div>
        <div><dt>left</dt><dd>${range ? (Math.abs(range[1] - range[0]) < 1 ? duration(range[0]) : `${duration(range[0])} to ${duration(range[1])}`) : "–"}</dd></div>
      </dl>`}
    ${running && (rebuild.why || progress?.waiting_for) && html`<p class="note">${rebuild.why || progress.waiting_for}</p>`}
    ${rebuild.report && html`<${Report} summary=${rebuild.report} kept=${state.reports[rebuild.generation]} before=${rebuild.replaces} after=${rebuild.generation} />`}
  </div>`;
}

function comparison(summary) {
  if (!summary) return "nothing was compared";
  const { changed, added, removed, models_before: before, models_after: after } = summary;
  const missing = Object.keys(summary.not_compared || {}).length;
  if (!(changed + added + removed) && !missing) return `identical: ${number(after)} models`;
  const rest = missing ? `; ${missing} partitions were not compared` : "";
  return `${number(changed + added + removed)} of ${number(Math.max(before, after))} models differ: ${number(changed)} changed, ${number(added)} added, ${number(removed)} removed${rest}`;
}

function Report({ summary, kept, before, after }) {
  const differ = summary.changed + summary.added + summary.removed;
  const missing = Object.entries(summary.not_compared || {});
  const rows = kept?.found?.differences || [];
  return html`<details open=${differ > 0}>
    <summary>Comparison: ${comparison(summary)}</summary>
    ${missing.map(([part, why]) => html`<p class="note" key=${part}>partition ${part} was not compared: ${why}</p>`)}
    ${kept?.why && html`<p class="quiet">${kept.why}</p>`}
    ${rows.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="Models that differ"><table>
      <caption>The first ${rows.length} models that differ, ${before} beside ${after}</caption>
      <thead><tr><th scope="col">model</th><th scope="col">field</th><th scope="col">${before}</th><th scope="col">${after}</th></tr></thead>
      <tbody>${rows.flatMap((one) => one.changes.slice(0, 6).map((change, at) => html`<tr key=${`${one.partition}/${one.id}/${change.path}`}>
        <td class="wide">${at ? "" : html`<code>${one.id}</code> ${one.kind === "changed" ? "" : one.kind}`}</td><td><code>${change.path || "/"}</code></td>
        <td class="wide"><span class="value before">${"before" in change ? JSON.stringify(change.before) : "–"}</span></td>
        <td class="wide"><span class="value after">${"after" in change ? JSON.stringify(change.after) : "–"}</span></td></tr>`))}</tbody>
    </table></div>`}
  </details>`;
}

// Of what is closed, no rows are drawn: there may be thousands.
function toggled(id, isOpen) {
  if ((state.opened[id] ?? null) === isOpen) return;
  state.opened[id] = isOpen;
  draw();
}

function Generation({ id, one, isActive }) {
  const stuck = one.partitions.filter((part) => part.why);
  const isOpen = state.opened[id] ?? (isActive && stuck.length > 0);
  return html`<details open=${isOpen} onToggle=${(event) => toggled(id, event.target.open)}>
    <summary>${id}, ${one.phase}: ${one.partitions.length} partitions, lag ${number(one.lag)}</summary>
    ${one.why && html`<p class="quiet">${one.why}</p>`}
    ${one.error && html`<p class="note bad">${one.error}</p>`}
    ${one.filling && html`<p class="quiet">its topic is filled from ${one.filling.topic}, lag ${number(one.filling.lag)}</p>
      ${one.filling.partitions.filter((part) => part.why).map((part) => html`<p class="note bad" key=${part.partition}>${one.filling.topic}[${part.partition}]: ${part.why}</p>`)}`}
    <p class="quiet">topic ${one.topic}, group ${one.group}, kept in ${one.kept_in}, code of version ${one.version} (${one.code_here ? "which this worker has" : "which this worker does not have"})</p>
    ${isOpen && html`<div class="scroll" tabindex="0" role="region" aria-label="Partitions of ${id}"><table>
      <caption>Partitions of ${id}</caption>
      <thead><tr><th scope="col" class="number">partition</th><th scope="col" class="number">position</th><th scope="col" class="number">end</th><th scope="col" class="number">lag</th><th scope="col">last 15 minutes</th><th scope="col" class="number">models</th><th scope="col">owner</th><th scope="col">state</th></tr></thead>
      <tbody>${one.partitions.map((part) => html`<tr key=${part.partition}>
        <td class="number">${part.partition}</td><td class="number">${number(part.position)}</td><td class="number">${number(part.end)}</td><td class="number">${number(part.lag)}</td>
        <td><${Curve} kind="spark" name="Lag of partition ${part.partition}" points=${state.history[id]?.[part.partition] || []} /></td>
        <td class="number">${number(part.models)}</td><td class="wide">${part.address || part.owner || "nobody"}</td><td class="wide">${part.phase || "–"}${part.why ? `: ${part.why}` : ""}</td></tr>`)}</tbody>
    </table></div>`}
  </details>`;
}

// Commands

const VERBS = {
  rebuild: ["Rebuild…", "Rebuild", "Make new models beside those that are live, from the beginning of the topic."],
  switch: ["Approve…", "Approve and switch", "Readers see the new models from then on, all at once. The old ones are kept for a while, to go back to."],
  pause: ["Pause…", "Pause", "It is folded no further until it is resumed; what is folded is kept."],
  resume: ["Resume…", "Resume", "It goes on where it was."],
  cancel: ["Cancel rebuild…", "Cancel rebuild", "Nothing is left of it, and readers see no change."],
  rollback: ["Roll back…", "Roll back", "Readers see the models again that were active before; those that are active now are kept for a while."],
};

function Buttons({ name, projection }) {
  if (!state.who) return null;
  const rebuild = projection.rebuild;
  const running = rebuild && rebuild.outcome === "running";
  const green = running && projection.generations[rebuild.generation];
  const verbs = [];
  if (running) {
    if (green && green.phase === "waiting") verbs.push("switch");
    else verbs.push(rebuild.is_paused ? "resume" : "pause");
    verbs.push("cancel");
  } else {
    verbs.push("rebuild");
    if (Object.values(projection.generations).some((one) => one.phase === "kept")) verbs.push("rollback");
  }
  return html`<div class="buttons">${verbs.map((verb) => html`<button key=${verb} class=${verb === "switch" ? "main" : ""} onClick=${() => openCommand(name, verb)}>${VERBS[verb][0]}</button>`)}</div>`;
}

async function openCommand(name, verb) {
  open({ kind: "command", name, verb, plan: null, why: "", busy: verb === "rebuild" });
  if (verb !== "rebuild") return;
  try {
    const plan = await ask(state.token, `/v1/projections/${encodeURIComponent(name)}/plan`);
    change({ plan, busy: false });
  } catch (error) {
    change({ why: error.message, busy: true });
  }
}

async function give() {
  const { name, verb, plan } = state.dialog;
  change({ busy: true, why: "" });
  try {
    await ask(state.token, `/v1/projections/${encodeURIComponent(name)}/${verb}`, plan ? { revision: plan.revision } : {});
    close();
  } catch (error) {
    change({ why: error.message, busy: false });
  }
}

async function signIn(event) {
  event.preventDefault();
  const token = event.target.elements.token.value.trim();
  change({ busy: true, why: "" });
  try {
    const { name, commands } = await ask(token, "/v1/me");
    state.token = token;
    state.who = commands ? name : "";
    close();
    start();
  } catch (error) {
    change({ why: error.message, busy: false });
  }
}

function signOut() {
  state.token = state.who = "";
  start();
  draw();
}

function open(dialog) {
  state.dialog = dialog;
  paint();
  document.querySelector("dialog").showModal();
}

function change(what) {
  if (!state.dialog) return;
  Object.assign(state.dialog, what);
  draw();
}

function close() {
  document.querySelector("dialog")?.close();
  state.dialog = null;
  draw();
}

function Dialog({ dialog }) {
  if (dialog.kind === "token")
    return html`<dialog onClose=${close} aria-labelledby="dialog-title"><form onSubmit=${signIn}>
      <h2 id="dialog-title">Sign in</h2>
      <p><label for="token">A token of this worker's --admin-tokens, or --read-tokens. It is kept until this page is closed.</label></p>
      <input id="token" name="token" type="password" autocomplete="off" required autofocus />
      ${dialog.why && html`<p class="note bad" role="alert">${dialog.why}</p>`}
      <div class="buttons"><button type="button" onClick=${close}>Not now</button><button class="main" disabled=${dialog.busy}>Sign in</button></div>
    </form></dialog>`;
  const [, title, said] = VERBS[dialog.verb];
  return html`<dialog onClose=${close} aria-labelledby="dialog-title">
    <h2 id="dialog-title">${title}: ${dialog.name}</h2>
    <p>${said}</p>
    ${dialog.verb === "switch" && html`<p class="note">${comparison(state.standing?.projections[dialog.name]?.rebuild?.report)}</p>`}
    ${dialog.verb === "rebuild" && (dialog.plan ? html`<${Plan} world=${dialog.plan.world} policy=${dialog.plan.policy} />` : !dialog.why && html`<p class="quiet">Looking at the topic and the state…</p>`)}
    ${dialog.why && html`<p class="note bad" role="alert">${dialog.why}</p>`}
    <div class="buttons"><button onClick=${close}>Leave it</button><button class="main" disabled=${dialog.busy} onClick=${give}>${title}</button></div>
  </dialog>`;
}

const SWITCHES = {
  identical: "by itself, if all models are identical: the code is the same",
  report: "once somebody has approved what differs",
  validate: "by itself, if the projection's validate expects all that differs",
  none: "by itself, without a comparison",
};

function Plan({ world, policy }) {
  const ranges = Object.entries(world.ends).map(([part, end]) => `${part}: ${number(world.starts[part])} to ${number(end)}`);
  const events = Object.entries(world.ends).reduce((sum, [part, end]) => sum + end - world.starts[part], 0);
  const gone = Object.values(world.starts).reduce((sum, start) => sum + start, 0);
  return html`<dl class="plan">
    <dt>topic</dt><dd>${world.topic}, by partition ${ranges.join(", ")}</dd>
    <dt>events</dt><dd>up to ${number(events)}</dd>
    ${gone > 0 && html`<dt>gone</dt><dd>${number(gone)} offsets that retention has deleted</dd>`}
    ${world.is_compacted && html`<dt>gone</dt><dd>all but the last event of each stream: the topic is compacted</dd>`}
    <dt>time</dt><dd>${world.events_per_second ? `about ${duration(events / world.events_per_second)}, at the ${number(world.events_per_second)} events/s of the last one` : "unknown: there is no earlier one to go by"}</dd>
    <dt>disk</dt><dd>${world.models_bytes === null ? "unknown" : `about ${bytes(world.models_bytes)} more on this worker`}; ${bytes(world.free_bytes)} free</dd>
    <dt>readers</dt><dd>see ${world.active}, as it goes on, until the switch</dd>
    <dt>switch</dt><dd>${SWITCHES[policy]}</dd>
  </dl>`;
}

let isDue = false;
function draw() {
  if (isDue) return;
  isDue = true;
  queueMicrotask(paint);
}

function paint() {
  isDue = false;
  render(html`<${Page} />`, document.getElementById("page"));
  document.getElementById("page").removeAttribute("aria-busy");
}

start();
draw();
