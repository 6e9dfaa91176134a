"use strict";
// Everything that comes from the data is put in as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const PAGE = 200; // rows of the list that are made at once
const RATES = ["SR", "OS", "frames"]; // values that are shown as yes or no

function make(tag, cls, ...inside) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  node.append(...inside.filter((part) => part !== null && part !== undefined));
  return node;
}
function draw(tag, attributes, ...inside) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...inside);
  return node;
}
const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const short = (value) => (Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4)));

// ---------------------------------------------------------------- tables
function showTables() {
  $("title").textContent = data.title;
  $("subtitle").textContent = data.subtitle;
  $("foot").textContent = data.foot;
  for (const table of data.tables) {
    const head = make("tr"), body = make("tbody");
    table.columns.forEach((name, i) => head.append(make("th", i ? "" : "words", name)));
    for (const row of table.rows) {
      const line = make("tr");
      row.forEach((cell, i) => {
        const [value, error] = Array.isArray(cell) ? cell : [cell, null];
        line.append(make("td", i ? "" : "words", value, error === null ? null : make("small", "", ` ± ${error}`)));
      });
      body.append(line);
    }
    $("tables").append(make("h2", "", table.title), make("p", "note", table.about));
    const named = table.columns.some(Boolean);
    $("tables").append(make("div", "scroll", make("table", "", named ? make("thead", "", head) : null, body)));
    for (const note of table.notes) $("tables").append(make("p", "note", note));
  }
}

// ---------------------------------------------------------------- curves
function showCurves() {
  $("curves").hidden = data.curves.length === 0;
  $("curves").open = data.episodes.length === 0;
  for (const chart of data.curves) {
    const points = chart.lines.flatMap((line) => line.points);
    const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
    const low = [Math.min(...xs), Math.min(...ys)], high = [Math.max(...xs), Math.max(...ys)];
    const wide = (high[0] - low[0]) || 1, tall = (high[1] - low[1]) || 1;
    const at = ([x, y]) => [10 + 580 * (x - low[0]) / wide, 140 - 130 * (y - low[1]) / tall];
    const picture = draw("svg", { viewBox: "0 0 600 150", preserveAspectRatio: "none" });
    picture.append(draw("line", { x1: 10, x2: 590, y1: 145, y2: 145, class: "axis" }));
    const cursor = draw("line", { y1: 5, y2: 145, class: "axis", visibility: "hidden" });
    chart.lines.forEach((line, i) => {
      picture.append(draw("polyline", { points: line.points.map((p) => at(p).join()).join(" "), class: `curve c${i % 4}` }));
    });
    picture.append(cursor);
    const rest = chart.lines.map((line) => {
      const [step, value] = line.points[line.points.length - 1];
      return `${line.name ? line.name + ": " : ""}${short(line.points[0][1])} → ${short(value)} at step ${step}`;
    }).join(" · ");
    const read = make("div", "read", rest);
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect();
      const step = low[0] + wide * ((event.clientX - box.left) / box.width * 600 - 10) / 580;
      read.textContent = chart.lines.map((line) => {
        const nearest = line.points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
        const x = at(nearest)[0];
        cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); cursor.setAttribute("visibility", "visible");
        return `${line.name ? line.name + ": " : ""}${short(nearest[1])} at step ${nearest[0]}`;
      }).join(" · ");
    });
    picture.addEventListener("pointerleave", () => { read.textContent = rest; cursor.setAttribute("visibility", "hidden"); });
    $("charts").append(make("div", "chart", make("h4", "", chart.name), picture, read));
  }
}

// ---------------------------------------------------------------- the list
const policies = data.policies;
const has = (metric) => data.episodes.some((e) => Object.values(e.walks).some((w) => typeof (w.metrics || {})[metric] === "number"));
const judged = has("SR");
const value = (episode, metric) => {
  const walk = episode.walks[view.focus];
  if (!walk) return null;
  return metric === "steps" ? walk.steps : (walk.metrics || {})[metric] ?? null;
};
const range = (values) => (values.length > 1 ? Math.max(...values) - Math.min(...values) : 0);
function difference(episode) { // of the policies side by side: who succeeds first, then how far apart they end
  const metrics = view.beside.map((p) => episode.walks[p]).filter(Boolean).map((w) => w.metrics || {});
  const of = (name) => metrics.map((m) => m[name]).filter((v) => typeof v === "number");
  return range(of("SR")) * 1000 + range(of("NE"));
}
const COLUMNS = [
  { key: "id", name: "Episode", words: true, get: (e) => e.number },
  ...["SR", "OS", "NE"].filter(has).map((metric) => ({ key: metric, name: metric, get: (e) => value(e, metric) })),
  { key: "steps", name: "Steps", get: (e) => value(e, "steps") },
];
const filmed = (episode) => +Object.values(episode.walks).some((walk) => Object.keys(walk.frames || {}).length > 0);
const someFilmed = new Set(data.episodes.map(filmed)).size > 1;
if (someFilmed) COLUMNS.push({ key: "frames", name: "Frames", title: "whether frames are kept here", get: filmed });
if (judged && policies.length > 1) {
  COLUMNS.push({ key: "differ", name: policies.length > 6 ? "Differ" : "All", title: "every policy's outcome; sorted by where those side by side differ", get: difference });
}
const view = { focus: policies[0], beside: [], sort: "id", down: false, limit: PAGE, episode: null, step: 0, timer: null, films: [] };

function options(select, pairs) {
  for (const [key, text] of pairs) select.append(new Option(text, key));
  select.hidden = pairs.length < 2;
}
function startList() {
  $("episodes").hidden = data.episodes.length === 0;
  data.episodes.forEach((e, i) => { e.number = i; });
  const speaks = policies.filter((p) => data.episodes.some((e) => e.walks[p] && Object.keys(e.walks[p].answers || {}).length));
  view.beside = [...speaks, ...policies.filter((p) => !speaks.includes(p))].slice(0, 2);
  view.focus = view.beside[0];
  const groups = [...new Set(data.episodes.map((e) => e.group))], scenes = [...new Set(data.episodes.map((e) => e.scene))].sort();
  options($("group"), groups.length > 1 ? [["", "all splits"], ...groups.map((g) => [g, g])] : []);
  options($("scene"), scenes.length > 1 ? [["", `all ${scenes.length} scenes`], ...scenes.map((s) => [s, s])] : []);
  options($("focus"), policies.map((p) => [p, p]));
  options($("outcome"), judged ? [["", "any outcome"], ["good", "success"], ["bad", "failure"], ["near", "was there, did not stop"], ["differ", "outcomes differ"]] : []);
  $("focus").value = view.focus;
  if (someFilmed && !judged) Object.assign(view, { sort: "frames", down: true });
  if (COLUMNS.some((c) => c.key === "differ")) Object.assign(view, { sort: "differ", down: true });
  for (const id of ["words", "group", "scene", "outcome"]) {
    $(id).addEventListener(id === "words" ? "input" : "change", () => { view.limit = PAGE; showList(); });
  }
  $("focus").addEventListener("change", () => { view.focus = $("focus").value; showList(); });
  $("more").addEventListener("click", () => { view.limit += 5 * PAGE; showList(); });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
}
function fits(episode) {
  const walk = episode.walks[view.focus], metrics = (walk || {}).metrics || {};
  if ($("group").value && episode.group !== $("group").value) return false;
  if ($("scene").value && episode.scene !== $("scene").value) return false;
  const text = `${episode.id} ${episode.instruction}`.toLowerCase();
  if (!$("words").value.toLowerCase().split(/\s+/).every((word) => text.includes(word))) return false;
  const succeeded = view.beside.map((p) => ((episode.walks[p] || {}).metrics || {}).SR).filter((v) => typeof v === "number");
  switch ($("outcome").value) {
    case "good": return metrics.SR === 1;
    case "bad": return metrics.SR === 0;
    case "near": return metrics.SR === 0 && metrics.OS === 1;
    case "differ": return range(succeeded) > 0;
    default: return true;
  }
}
function outcomeOf(walk) {
  const metrics = (walk || {}).metrics || {};
  if (typeof metrics.SR !== "number") return "none";
  return metrics.SR ? "good" : metrics.OS ? "near" : "bad";
}
const OUTCOMES = { good: "success", near: "failure, but was there", bad: "failure", none: "no result" };
function showList() {
  const head = make("tr");
  for (const column of COLUMNS) {
    const arrow = view.sort === column.key ? (view.down ? " ↓" : " ↑") : "";
    const cell = make("th", `sortable${column.words ? " words" : ""}`, column.name + arrow);
    cell.title = column.title || `sort by ${column.name}`;
    cell.dataset.key = column.key;
    cell.tabIndex = 0;
    const sort = () => {
      Object.assign(view, { down: view.sort === column.key ? !view.down : ["differ", "frames"].includes(column.key), sort: column.key });
      showList();
    };
    cell.addEventListener("click", sort);
    cell.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
    head.append(cell);
  }
  $("list").querySelector("thead").replaceChildren(head);
  const get = COLUMNS.find((c) => c.key === view.sort).get;
  const kept = data.episodes.filter(fits).map((e) => [get(e), e]);
  kept.sort(([a, x], [b, y]) => {
    if (a === null || b === null) return (a === null) - (b === null) || x.number - y.number;
    return (view.down ? b - a : a - b) || x.number - y.number;
  });
  $("count").textContent = `${kept.length} of ${data.episodes.length}`;
  $("list").querySelector("tbody").replaceChildren(...kept.slice(0, view.limit).map(([, e]) => row(e)));
  $("more").hidden = kept.length <= view.limit;
}
function row(episode) {
  const line = make("tr", episode === view.episode ? "chosen" : "");
  line.dataset.number = episode.number;
  for (const column of COLUMNS) {
    if (column.key === "id") {
      const place = `${episode.id} · ${episode.scene}`;
      line.append(make("td", "told", make("div", "", episode.instruction), make("span", "place", place)));
    } else if (column.key === "differ") {
      const cell = make("td");
      for (const policy of policies) {
        const dot = make("span", `dot ${outcomeOf(episode.walks[policy])}`);
        dot.title = `${policy}: ${OUTCOMES[outcomeOf(episode.walks[policy])]}`;
        cell.append(dot);
      }
      line.append(cell);
    } else {
      const cell = column.get(episode), whole = column.key === "steps";
      if (RATES.includes(column.key) && cell !== null) line.append(make("td", cell ? "good-text" : "bad-text", cell ? "yes" : "no"));
      else line.append(make("td", "", number(cell, whole ? 0 : 2)));
    }
  }
  line.addEventListener("click", () => choose(episode, true));
  return line;
}

// ---------------------------------------------------------------- one episode
function startDetail() {
  for (const policy of policies) {
    const chip = make("button", "", policy);
    chip.type = "button";
    chip.addEventListener("click", () => {
      const there = view.beside.includes(policy);
      if (there && view.beside.length === 1) return;
      view.beside = there ? view.beside.filter((p) => p !== policy) : policies.filter((p) => p === policy || view.beside.includes(p));
      showChips(); showList(); showEpisode();
    });
    $("chips").append(chip);
  }
  $("chips").hidden = policies.length < 2;
  showChips();
  const jump = (change) => { pause(); go(view.step + change); };
  $("step").addEventListener("input", () => { pause(); go(+$("step").value); });
  $("back").addEventListener("click", () => jump(-1));
  $("on").addEventListener("click", () => jump(1));
  $("play").addEventListener("click", () => (view.timer ? pause() : play()));
  document.addEventListener("keydown", (event) => {
    if (["INPUT", "SELECT"].includes(event.target.tagName) || !view.episode) return;
    if (event.key === "ArrowLeft") jump(-1);
    if (event.key === "ArrowRight") jump(1);
  });
}
function showChips() {
  [...$("chips").children].forEach((chip) => chip.setAttribute("aria-pressed", view.beside.includes(chip.textContent)));
}
const steps = () => Math.max(1, ...shown().map(([, walk]) => walk.steps + (walk.path ? 1 : 0)));
const shown = () => view.beside.map((p) => [p, view.episode.walks[p]]).filter(([, walk]) => walk);
function play() {
  if (view.step >= steps() - 1) go(0);
  $("play").textContent = "Pause";
  view.timer = setInterval(() => (view.step >= steps() - 1 ? pause() : go(view.step + 1)), 300);
}
function pause() {
  clearInterval(view.timer);
  view.timer = null;
  $("play").textContent = "Play";
}
function choose(episode, asked) {
  pause();
  Object.assign(view, { episode, step: 0 });
  history.replaceState(null, "", `#${episode.number}`);
  for (const line of $("list").querySelectorAll("tbody tr")) line.classList.toggle("chosen", +line.dataset.number === episode.number);
  showEpisode();
  if (asked && matchMedia("(max-width: 900px)").matches) $("detail").scrollIntoView({ behavior: "smooth" });
}
function showEpisode() {
  const episode = view.episode;
  if (!episode) return;
  $("detail").hidden = false;
  $("name").textContent = `${episode.scene} · episode ${episode.id}`;
  $("instruction").textContent = episode.instruction;
  $("facts").replaceChildren(...(episode.facts || []).flatMap(([name, text]) => [make("dt", "", name), make("dd", "", text)]));
  $("legend").hidden = !shown().some(([, walk]) => walk.path);
  view.films = shown().map(([policy, walk]) => film(episode, policy, walk));
  $("cards").replaceChildren(...view.films.map((one) => one.card));
  if (!view.films.length) $("cards").append(make("p", "note", "None of the chosen policies has walked this episode."));
  $("step").max = steps() - 1;
  go(Math.min(view.step, steps() - 1));
}
function go(step) {
  view.step = Math.max(0, Math.min(step, steps() - 1));
  $("step").value = view.step;
  $("at").textContent = `step ${view.step + 1} of ${steps()}`;
  for (const one of view.films) one.go(view.step);
}
function film(episode, policy, walk) {
  const outcome = outcomeOf(walk), values = make("div", "values");
  if (judged) values.append(make("span", `dot ${outcome}`), OUTCOMES[outcome] + " · ");
  const told = ["SPL", "NE", "TL", "nDTW"].filter((m) => typeof (walk.metrics || {})[m] === "number");
  values.append([...told.map((m) => `${m} ${number(walk.metrics[m])}`), `${walk.steps} steps`].join(" · "));
  const card = make("div", "walk", make("h4", "", policy), values);
  const chart = walk.path ? map(episode, walk) : null;
  if (chart) card.append(chart.picture);
  const kept = Object.keys(walk.frames || {}).map(Number).sort((a, b) => a - b);
  const picture = make("img", chart ? "view" : "view alone"), did = make("span", "did"), answer = make("div", "answer");
  if (kept.length) card.append(picture); else card.append(make("div", "absent", "No frames are kept of this walk."));
  card.append(did, answer);
  const strip = walk.memory ? filmstrip(walk, kept) : null;
  if (strip) card.append(strip.row);
  return {
    card,
    go(step) {
      const last = Math.min(step, walk.steps - 1);
      if (chart) chart.go(Math.min(step, walk.steps));
      if (kept.length) {
        const frame = kept.filter((s) => s <= last).pop() ?? kept[0];
        picture.src = `data:image/jpeg;base64,${walk.frames[frame]}`;
        picture.alt = frame === last ? `what was seen at step ${frame + 1}` : `what was seen at step ${frame + 1}; the frame of step ${last + 1} is not kept`;
        picture.title = picture.alt;
      }
      did.textContent = step > last ? (walk.stopped === false ? "out of steps" : "ended") : data.words[walk.actions[last]] ?? walk.actions[last];
      const said = Object.keys(walk.answers || {}).map(Number).filter((s) => s <= last).sort((a, b) => a - b).pop();
      answer.textContent = said === undefined ? "" : walk.answers[said];
      answer.classList.toggle("asked", said === step);
      if (strip) strip.go(last);
    },
  };
}
function filmstrip(walk, kept) { // of an export: which frames the model is shown at this step
  const row = make("div", "strip");
  const images = kept.map((step) => {
    const image = make("img");
    image.src = `data:image/jpeg;base64,${walk.frames[step]}`;
    image.alt = `step ${step + 1}`;
    image.addEventListener("click", () => go(step));
    row.append(image);
    return image;
  });
  return {
    row,
    go(step) {
      const history = data.history[step] || [];
      images.forEach((image, i) => {
        image.classList.toggle("shown", history.includes(kept[i]));
        image.classList.toggle("now", kept[i] === step);
      });
      const now = images[kept.indexOf(step)];
      if (now) row.scrollLeft = now.offsetLeft - row.offsetLeft - row.clientWidth / 2;
    },
  };
}

// ---------------------------------------------------------------- the map, in metres: x to the right, z downwards
function map(episode, walk) {
  const way = [];
  for (let i = 0; i < walk.path.length; i += 3) way.push([walk.path[i] / 100, walk.path[i + 1] / 100, walk.path[i + 2]]);
  const others = shown().flatMap(([, w]) => w.path || []), points = [...(episode.reference || [])];
  for (let i = 0; i < others.length; i += 3) points.push([others[i] / 100, others[i + 1] / 100]); // the same section for all
  if (episode.goal) points.push(episode.goal);
  const house = data.maps[episode.map];
  const low = [0, 1].map((i) => Math.min(...points.map((p) => p[i])) - 1.5), high = [0, 1].map((i) => Math.max(...points.map((p) => p[i])) + 1.5);
  if (house && Math.max(...house.size) < 16) [0, 1].forEach((i) => { low[i] = Math.min(low[i], house.origin[i]); high[i] = Math.max(high[i], house.origin[i] + house.size[i]); });
  const size = Math.max(high[0] - low[0], high[1] - low[1]), middle = [0, 1].map((i) => (low[i] + high[i]) / 2);
  const picture = draw("svg", { class: "map", viewBox: `${middle[0] - size / 2} ${middle[1] - size / 2} ${size} ${size}`, role: "img", "aria-label": "map" });
  const unit = size / 100;
  if (house) picture.append(draw("image", { x: house.origin[0], y: house.origin[1], width: house.size[0], height: house.size[1], preserveAspectRatio: "none", href: `data:image/png;base64,${house.png}` }));
  const line = (part) => part.map((p) => `${p[0]},${p[1]}`).join(" ");
  if (episode.goal) picture.append(draw("circle", { cx: episode.goal[0], cy: episode.goal[1], r: episode.radius || 0, class: "near-goal", "stroke-width": 0.4 * unit }));
  if (episode.reference) picture.append(draw("polyline", { points: line(episode.reference), class: "ref", "stroke-width": unit, "stroke-dasharray": `${2.4 * unit} ${1.6 * unit}` }));
  const done = draw("polyline", { class: "way", "stroke-width": 1.3 * unit });
  picture.append(draw("polyline", { points: line(way), class: "way ahead", "stroke-width": 1.3 * unit }), done);
  const mark = (p, cls, r) => draw("circle", { cx: p[0], cy: p[1], r: r * unit, class: `mark ${cls}`, "stroke-width": 0.6 * unit });
  picture.append(mark(way[0], "a", 1.9));
  if (episode.goal) picture.append(mark(episode.goal, "b", 2.1));
  const agent = draw("path", { d: "M0 -4 L2.9 3.2 L0 1.7 L-2.9 3.2 Z", class: "mark c", "stroke-width": 0.6 });
  picture.append(agent);
  return {
    picture,
    go(step) {
      const [x, z, heading] = way[Math.min(step, way.length - 1)];
      done.setAttribute("points", line(way.slice(0, step + 1)));
      agent.setAttribute("transform", `translate(${x} ${z}) rotate(${-heading}) scale(${unit})`);
    },
  };
}

// ---------------------------------------------------------------- begin
showTables();
showCurves();
if (data.episodes.length) {
  startList();
  startDetail();
  showList();
  const wanted = data.episodes[+location.hash.slice(1)], first = $("list").querySelector("tbody tr");
  if (location.hash && wanted) choose(wanted, false);
  else if (first) choose(data.episodes[+first.dataset.number], false);
}
document.body.dataset.ready = "yes";
