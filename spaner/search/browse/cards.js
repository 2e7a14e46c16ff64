"use strict";
// A row of the index as a card. Names come from disks and strangers: they are text, never markup.

const $ = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};
const number = (n) => n.toLocaleString("en");
// What a terminal or a page could trip over is spelled out: controls and marks that turn the writing round.
const shown = (text) =>
  text.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (c) => "\\x" + c.charCodeAt(0).toString(16).padStart(2, "0"));

const player = new Audio();
let playing = null;
player.addEventListener("ended", () => mark(null));
player.addEventListener("error", () => mark(null));
function mark(button) {
  if (playing) { playing.textContent = "▶"; playing.setAttribute("aria-pressed", "false"); }
  playing = button;
  if (button) { button.textContent = "❚❚"; button.setAttribute("aria-pressed", "true"); }
}
function play(row, button) {
  if (playing === button) { player.pause(); mark(null); return; }
  player.src = `/sound/${row}`;
  mark(button);
  player.play().catch(() => mark(null));
}

const waves = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    if (!isIntersecting) continue;
    waves.unobserve(target);
    fetch(`/api/bars?row=${target.dataset.row}`)
      .then((answer) => (answer.ok ? answer.json() : Promise.reject()))
      .then((peaks) => target.replaceChildren(...peaks.map((peak) => {
        const bar = make("i");
        bar.style.setProperty("--peak", peak);
        return bar;
      })))
      .catch(() => lost(target.parentElement, "not readable"));
  }
}, { rootMargin: "300px" });

function lost(tile, why) {
  tile.classList.add("lost");
  tile.replaceChildren(make("span", "", why));
}

function picture(row, tile) {
  const image = make("img");
  image.loading = "lazy";
  image.decoding = "async";
  image.alt = "";
  image.addEventListener("error", () => lost(tile, "not readable"));
  image.addEventListener("load", () => image.classList.toggle("tiny", image.naturalWidth <= 64));
  image.src = `/thumbnail/${row}`;
  return image;
}

function card(hit, choose) {
  const node = $("card").content.firstElementChild.cloneNode(true);
  const tile = node.querySelector(".seen");
  const name = shown(hit.id);
  if (hit.modality === "image") tile.append(picture(hit.row, tile));
  else if (hit.modality === "text") tile.append(make("p", "", shown(hit.id.replace(/^\d+:/, ""))));
  else if (hit.sounds) {
    const wave = make("div", "wave");
    wave.dataset.row = hit.row;
    tile.append(wave);
    waves.observe(wave);
    const button = make("button", "play", "▶");
    button.type = "button";
    button.setAttribute("aria-label", `Play ${name}`);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => play(hit.row, button));
    const frame = make("div", "sound");
    tile.replaceWith(frame);
    frame.append(tile, button);
  } else tile.append(make("p", "", hit.modality));
  tile.setAttribute("aria-label", `What is like ${hit.class}, ${name}`);
  tile.addEventListener("click", () => choose(hit));
  node.dataset.row = hit.row;
  node.querySelector(".label").textContent = shown(hit.class);
  node.querySelector(".score").textContent = hit.score === null ? "" : hit.score.toFixed(3);
  const place = node.querySelector(".place");
  const end = name.length > 24 ? `…${name.slice(-22)}` : name; // the end of a path says more than its beginning
  place.textContent = hit.modality === "text" ? "text" : end;
  place.title = name;
  return node;
}
