"use strict";
// Asks the server and shows the answer. The address holds what was asked, so that Back goes back.

const PAGE = 60;
let about = null;
let asked = { kind: "rows" };
let turn = 0; // answers that come too late are dropped

const chosen = () => [...document.querySelectorAll("#modalities [aria-pressed=true]")].map((b) => b.value);
const space = () => document.querySelector("[name=space]:checked").value;

function filters() {
  const query = new URLSearchParams();
  for (const modality of chosen()) query.append("modality", modality);
  if ($("class").value) query.append("class", $("class").value);
  query.set("space", space());
  query.set("k", PAGE);
  return query;
}

async function answer(request, options) {
  const got = await fetch(request, options);
  const said = await got.json().catch(() => ({ error: "the server does not answer; start `spaner browse` again" }));
  if (!got.ok) throw new Error(said.error || got.statusText);
  return said;
}

function say(text, isError = false) {
  $("said").textContent = text;
  $("said").classList.toggle("error", isError);
}

async function run() {
  const mine = ++turn;
  const query = filters();
  $("results").setAttribute("aria-busy", "true");
  try {
    let found;
    if (asked.kind === "words") { query.set("q", asked.text); found = await answer(`/api/search?${query}`); }
    else if (asked.kind === "like") { query.set("row", asked.row); found = await answer(`/api/like?${query}`); }
    else if (asked.kind === "file") {
      query.set("name", asked.file.name);
      found = await answer(`/api/drop?${query}`, { method: "POST", body: asked.file });
    } else found = await answer(`/api/rows?${query}`);
    if (mine !== turn) return;
    asked.kind === "rows" ? showRows(found) : showHits(found);
  } catch (error) {
    if (mine !== turn) return;
    $("results").replaceChildren();
    more = null;
    say(shown(error.message), true);
  } finally {
    if (mine === turn) $("results").removeAttribute("aria-busy");
  }
}

const dressed = (hits) => hits.map((hit) => ({ ...hit, sounds: !["image", "text"].includes(hit.modality) && about.sounding.includes(hit.modality) }));

function grid(hits, title, note) {
  const column = make("section", "column");
  if (title) column.append(Object.assign(make("h2", "", title), {}));
  const cells = make("div", "grid");
  cells.append(...dressed(hits).map((hit) => card(hit, like)));
  column.append(cells);
  if (!hits.length) cells.replaceWith(make("p", "place", note || "Nothing found: the filters leave no row."));
  return column;
}

let more = null; // how far the list of rows has been shown
function showRows(found) {
  $("asked").hidden = true;
  $("results").className = "";
  const column = grid(found.hits);
  $("results").replaceChildren(column);
  say(found.total ? `${number(found.total)} rows` : "Nothing found: the filters leave no row.");
  more = { next: found.hits.length, total: found.total, cells: column.querySelector(".grid") };
}

async function showMore() {
  if (!more || more.next >= more.total || more.busy) return;
  const mine = more;
  mine.busy = true;
  const query = filters();
  query.set("start", mine.next);
  const found = await answer(`/api/rows?${query}`).catch(() => ({ hits: [] }));
  mine.busy = false;
  if (mine !== more || !found.hits.length) return;
  mine.cells.append(...dressed(found.hits).map((hit) => card(hit, like)));
  mine.next += found.hits.length;
}

function showHits(found) {
  more = null;
  const { trained, frozen } = found.hits;
  const both = trained && frozen;
  const names = { trained: "Trained space", frozen: "Frozen encoder" };
  const columns = Object.entries(found.hits).map(([name, hits]) => grid(hits, both ? names[name] : "", found.notes[name]));
  $("results").className = both ? "both" : "";
  $("results").replaceChildren(...columns);
  const count = Math.max(trained ? trained.length : 0, frozen ? frozen.length : 0);
  say(count ? `${number(count)} nearest of ${number(about.rows)}, by cosine` : "Nothing found.");
  showAsked(found);
  scrollTo(0, 0);
}

function showAsked(found) {
  const left = make("div", "shown");
  if (asked.kind === "words") left.append(make("q", "", asked.text));
  else if (asked.kind === "file") left.append(...fileShown(asked.file));
  else left.append(...rowShown(found.asked));
  const list = make("ol", "near");
  list.setAttribute("aria-label", "Nearest classes");
  for (const { name, score } of found.classes) {
    const item = make("li");
    const bar = make("i");
    bar.style.setProperty("--part", Math.max(0, score));
    item.append(make("span", "", shown(name)), bar, make("b", "", score.toFixed(3)));
    list.append(item);
  }
  $("asked").replaceChildren(left, ...(found.classes.length ? [list] : []));
  $("asked").hidden = false;
}

let kept = null; // the address of the dropped file's own bytes
function fileShown(file) {
  if (kept) URL.revokeObjectURL(kept);
  kept = URL.createObjectURL(file);
  const sound = file.type.startsWith("audio/");
  const node = sound ? Object.assign(make("audio"), { controls: true, src: kept }) : Object.assign(make("img"), { src: kept, alt: "" });
  return [node, make("span", "", shown(file.name))];
}

function rowShown(hit) {
  if (hit.modality === "text") return [make("q", "", shown(hit.id.replace(/^\d+:/, "")))];
  const label = make("span", "", `like this ${shown(hit.class)}`);
  if (hit.modality !== "image") return [Object.assign(make("audio"), { controls: true, preload: "none", src: `/sound/${hit.row}` }), label];
  const frame = make("span");
  frame.append(picture(hit.row, frame));
  return [frame, label];
}

function ask(next, remember = true) {
  asked = next;
  $("words").value = next.kind === "words" ? next.text : "";
  const way = next.kind === "words" ? `?q=${encodeURIComponent(next.text)}` : next.kind === "like" ? `?like=${next.row}` : "/";
  if (remember) history.pushState(null, "", next.kind === "file" ? location.href : way);
  return run();
}
const like = (hit) => ask({ kind: "like", row: hit.row });

function restore() {
  const query = new URLSearchParams(location.search);
  if (query.get("q")) ask({ kind: "words", text: query.get("q") }, false);
  else if (query.get("like")) ask({ kind: "like", row: query.get("like") }, false);
  else ask({ kind: "rows" }, false);
}

function walk(event) {
  const cards = [...document.querySelectorAll(".seen")];
  const at = cards.indexOf(document.activeElement);
  if (at < 0) return;
  const top = cards[at].getBoundingClientRect().top;
  const columns = Math.max(1, cards.filter((c) => Math.abs(c.getBoundingClientRect().top - top) < 4).length);
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (event.key === " ") { const button = cards[at].parentElement.querySelector(".play"); if (button) { event.preventDefault(); button.click(); } }
  if (!step || !cards[at + step]) return;
  event.preventDefault();
  cards[at + step].focus();
}

addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== $("words")) { event.preventDefault(); $("words").focus(); }
  else if (event.key === "Escape" && asked.kind !== "rows") ask({ kind: "rows" });
  else walk(event);
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("words").value.trim();
  ask(text ? { kind: "words", text } : { kind: "rows" });
});
let typing = 0;
$("words").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => $("ask").requestSubmit(), 350);
});
$("file").addEventListener("change", () => { if ($("file").files[0]) ask({ kind: "file", file: $("file").files[0] }); $("file").value = ""; });
let depth = 0;
const carries = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
addEventListener("dragenter", (event) => { if (carries(event)) { event.preventDefault(); depth++; $("drop").hidden = false; } });
addEventListener("dragleave", () => { if (--depth <= 0) { depth = 0; $("drop").hidden = true; } });
addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  depth = 0;
  $("drop").hidden = true;
  if (!carries(event)) return;
  event.preventDefault();
  if (event.dataTransfer.files[0]) ask({ kind: "file", file: event.dataTransfer.files[0] });
});
addEventListener("popstate", restore);
$("class").addEventListener("change", run);
$("space").addEventListener("change", run);
document.querySelector(".brand").addEventListener("click", (event) => { event.preventDefault(); ask({ kind: "rows" }); });
new IntersectionObserver(([end]) => { if (end.isIntersecting) showMore(); }, { rootMargin: "900px" }).observe($("more"));

answer("/api/about").then((facts) => {
  about = facts;
  $("name").textContent = shown(facts.name);
  document.title = `${shown(facts.name)} · spaner`;
  for (const [name, rows] of Object.entries(facts.modalities)) {
    const button = make("button", "", name);
    button.append(make("small", "", number(rows)));
    button.type = "button";
    button.value = name;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      run();
    });
    $("modalities").append(button);
  }
  for (const { name, rows } of facts.classes) {
    const option = make("option", "", `${shown(name)} (${number(rows)})`);
    option.value = name;
    $("class").append(option);
  }
  if (!facts.frozen.length) $("space").hidden = true;
  restore();
}).catch((error) => say(error.message, true));
