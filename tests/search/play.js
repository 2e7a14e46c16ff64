// Plays the reader of the page and writes what was seen into the document.
const until = async (what, test) => {
  for (let i = 0; i < 400; i++) { if (test()) return; await new Promise((done) => setTimeout(done, 50)); }
  throw new Error("waited in vain: " + what + " " + document.getElementById("said").textContent);
};
const cards = () => [...document.querySelectorAll(".card")];
const names = () => cards().map((c) => c.querySelector(".label").textContent);
const said = () => document.getElementById("said").textContent;
const idle = () => !document.getElementById("results").hasAttribute("aria-busy");
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const after = async (act, what) => { act(); await new Promise((d) => setTimeout(d, 30)); await until(what, idle); };
const type = async (text) => {
  const box = document.getElementById("words");
  box.value = text;
  box.dispatchEvent(new Event("input", { bubbles: true }));
  await until("typing", () => new URLSearchParams(location.search).get("q") === (text || null));
  await until("answer", idle);
};
const drop = async (name, kind, text) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type: kind }));
  const tell = (what) => document.body.dispatchEvent(new DragEvent(what, { dataTransfer: data, bubbles: true, cancelable: true }));
  tell("dragenter");
  seen.veil = !document.getElementById("drop").hidden;
  await after(() => tell("drop"), "drop");
};
const look = () => ({ said: said(), names: names().slice(0, 5), count: cards().length,
  near: [...document.querySelectorAll(".near li span")].map((n) => n.textContent),
  error: document.getElementById("said").className, columns: document.querySelectorAll(".column").length });
(async () => {
  await until("rows", () => cards().length > 0 && idle());
  seen.start = look();
  seen.title = document.title;
  seen.brand = document.getElementById("name").textContent;
  seen.injected = document.querySelectorAll("main img[src=x], main b b, header b b").length;
  seen.hostile = names().filter((name) => name.includes("<b>"));
  await until("broken", () => document.querySelectorAll(".lost").length >= 2);
  seen.lost = document.querySelectorAll(".lost").length;
  seen.waves = document.querySelectorAll(".wave i").length;
  await type("seven");
  seen.typed = look();
  await after(() => document.querySelector("#modalities [value=audio]").click(), "audio");
  seen.sounds = look();
  await after(() => document.querySelector("#modalities [value=audio]").click(), "all");
  await after(() => { document.querySelector("[value=both]").click(); }, "both");
  seen.both = look();
  await after(() => { document.querySelector("[value=trained]").click(); }, "trained");
  const first = cards()[2];
  const id = first.querySelector(".place").textContent;
  await after(() => first.querySelector(".seen").click(), "click");
  seen.clicked = { ...look(), same: cards()[0].querySelector(".place").textContent === id, at: location.search };
  history.back();
  await until("back", () => location.search.includes("seven") && idle());
  seen.back = document.getElementById("words").value;
  await drop("two.png", "image/png", PICTURE);
  seen.dropped = { ...look(), first: cards()[0].querySelector(".place").textContent };
  await drop("two.wav", "audio/wav", SOUND);
  seen.heard = { ...look(), first: cards()[0].querySelector(".place").textContent };
  await drop("broken.png", "image/png", btoa("no picture"));
  seen.broken = look();
  document.activeElement.blur();
  await after(() => dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" })), "escape");
  dispatchEvent(new KeyboardEvent("keydown", { key: "/" }));
  seen.slash = document.activeElement.id;
  const select = document.getElementById("class");
  await after(() => { document.querySelector("#modalities [value=audio]").click(); }, "audio");
  select.value = "<b>bold & co";
  await after(() => select.dispatchEvent(new Event("change", { bubbles: true })), "class");
  seen.empty = look();
  select.value = "";
  await after(() => { document.querySelector("#modalities [value=audio]").click(); }, "all");
  await after(() => select.dispatchEvent(new Event("change", { bubbles: true })), "classes");
  cards()[0].querySelector(".seen").focus();
  press("ArrowRight"); press("ArrowDown"); press("ArrowLeft");
  seen.walked = [...document.querySelectorAll(".seen")].indexOf(document.activeElement);
  seen.columns = getComputedStyle(document.querySelector(".grid")).gridTemplateColumns.split(" ").length;
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  seen.unnamed = [...document.querySelectorAll("button, input, select")].filter((n) =>
    !(n.getAttribute("aria-label") || n.textContent || n.labels?.length)).length;
  seen.requests = performance.getEntriesByType("resource").map((e) => new URL(e.name)).filter((u) =>
    u.protocol !== "blob:" && u.protocol !== "data:" && u.host !== location.host).map(String);
  seen.ground = getComputedStyle(document.body).backgroundColor;
  seen.ink = getComputedStyle(document.body).color;
})().catch((error) => seen.errors.push(String(error))).finally(() => {
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
