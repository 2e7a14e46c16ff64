"""The page in a real Chromium: it loads without errors and without the network, plots draw, names show on
hover and on keyboard focus. Skipped where there is no Chromium; CI has one.

A copy of the page gets a script that listens for errors from the first line on, plays the reader and writes
what it saw into the document, which `--dump-dom` prints.
"""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Outcome

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

LISTEN = """<script>
window.seen = { errors: [] };
addEventListener("error", (event) => seen.errors.push(event.message || event.target.outerHTML), true);
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => seen.errors.push("policy: " + event.blockedURI));
</script>"""

PLAY = """<script>
const tip = document.getElementById("tip");
const said = () => (tip.hidden ? null : tip.textContent);
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true
})); seen.charts = [...document.querySelectorAll("svg.chart")].map((chart) => {
  const marks = [...chart.querySelectorAll("[data-tip]")];
  chart.scrollIntoView({ block: "center", behavior: "instant" });
  const box = marks[0].getBoundingClientRect();
  const at = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true };
  marks[0].dispatchEvent(new PointerEvent("pointermove", at));
  const hovered = said();
  chart.dispatchEvent(new PointerEvent("pointerleave"));
  const left = said();
  const stops = chart.querySelectorAll('[tabindex="0"]').length;
  chart.querySelector('[tabindex="0"]').focus();
  const focused = said();
  const visited = new Set([document.activeElement]);
  for (const key of ["End", "ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown"]) { press(key);
  visited.add(document.activeElement); } const walked = said();
  press("Escape");
  const frame = chart.getBoundingClientRect();
  const lost = [...marks, ...chart.querySelectorAll("path, text")].filter((part) => {
    const inside = part.getBoundingClientRect();
    return ![inside.x, inside.y, inside.width, inside.height].every(Number.isFinite)
      || /NaN|inf/i.test(part.outerHTML.replace(/data-tip="[^"]*"|aria-label="[^"]*"|>[^<]*</g, ""));
  }).length;
  return { name: chart.getAttribute("aria-label"), marks: marks.length, width: frame.width, height:
  frame.height,
    lost, hovered, left, stops, focused, walked, visited: visited.size, closed: said(),
    labelled: marks.every((mark) => mark.getAttribute("aria-label")) };
});
scrollTo(0, 0);
seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
seen.ground = getComputedStyle(document.body).backgroundColor;
seen.ink = getComputedStyle(document.body).color;
seen.align = getComputedStyle(document.querySelector("td")).textAlign;
seen.figures = getComputedStyle(document.querySelector("td")).fontVariantNumeric;
seen.first = document.querySelector("a, button, [tabindex]").textContent;
seen.reachable = [...document.querySelectorAll(".scroll")].every((region) => region.tabIndex === 0);
seen.targets = [...document.querySelectorAll('a[href^="#"]')].every((link) =>
document.querySelector(link.hash)); const out = document.createElement("pre");
out.id = "seen";
out.textContent = JSON.stringify(seen);
document.body.append(out);
</script>"""


def browse(page: Path, width: int = 1280, *, dark: bool = False) -> dict[str, Any]:
    """What the script saw of the page, in a window of that width."""
    profile = page.parent / "profile"
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=3000"),
        *("--disable-quic", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={profile}", f"--window-size={width},900"),
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]
    command = [str(CHROMIUM), *options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    shutil.rmtree(profile, ignore_errors=True)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the script did not finish: {done.stderr[-2000:]}"
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, toy_cache: Path, few_rows_in_the_plane: None) -> Path:
    """A report about two runs and a sweep, as the command writes it."""
    from spaner.align.report.write import write
    from spaner.align.train.config import TrainConfig
    from spaner.align.train.fit import train
    from spaner.align.train.sweep import sweep

    place = tmp_path_factory.mktemp("page")
    runs = []
    for recipe in ("paper", "anchored"):
        config = TrainConfig.from_recipe(recipe, epochs=3, batch_size=32)
        runs.append(train(toy_cache, config, place / recipe)[1])
    grid = {"prompt_length": [1, 2], "out_dim": [8, 16], "seed": [1, 2]}
    sweep(toy_cache, grid, {"epochs": 1, "batch_size": 64}, place / "sweep", workers=1)
    write(runs, place / "report.html", sweeps=[place / "sweep"], figures=False)
    text = (place / "report.html").read_text()
    text = text.replace("<style>", f"{LISTEN}<style>", 1).replace("</body>", f"{PLAY}</body>", 1)
    (place / "played.html").write_text(text)
    return place / "played.html"


@pytest.fixture(scope="module")
def seen(page: Path) -> dict[str, Any]:
    return browse(page)


def test_it_loads_without_errors_and_asks_for_nothing(seen: dict[str, Any]) -> None:
    assert seen["errors"] == []
    assert seen["requests"] == []


def test_every_plot_draws(seen: dict[str, Any]) -> None:
    # accuracy, cosines, ablation of length and of width: 2 each; planes: frozen and 2 runs; confusion: 2 x
    # 2; losses: 2
    assert len(seen["charts"]) == 2 + 2 + 2 + 2 + 3 + 4 + 2
    for chart in seen["charts"]:
        assert chart["marks"] > 1, chart
        assert chart["lost"] == 0, chart
        assert chart["width"] > 200, chart
        assert chart["height"] > 100, chart


def test_hover_names_a_point_and_leaving_forgets_it(seen: dict[str, Any]) -> None:
    for chart in seen["charts"]:
        assert chart["hovered"], chart
        assert "\n" in chart["hovered"], "a name, and what it stands for"
        assert chart["left"] is None, chart
    planes = [chart for chart in seen["charts"] if chart["name"].startswith("t-SNE")]
    assert len(planes) == 3
    assert all(chart["hovered"].startswith("class ") for chart in planes)


def test_the_keyboard_reaches_every_plot_and_walks_in_it(seen: dict[str, Any]) -> None:
    for chart in seen["charts"]:
        assert chart["stops"] == 1, "a plot is one stop, not hundreds"
        assert chart["focused"], chart
        assert chart["walked"], chart
        assert chart["visited"] > 1, chart
        assert chart["closed"] is None, chart
        assert chart["labelled"], chart
    assert seen["first"] == "Skip to the results"
    assert seen["reachable"]
    assert seen["targets"], "every link inside the page leads somewhere"


def test_numbers_stand_under_each_other(seen: dict[str, Any]) -> None:
    assert seen["align"] == "right"
    assert seen["figures"] == "tabular-nums"


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of "rgb(r, g, b)"."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_light_and_dark_follow_the_reader(page: Path, seen: dict[str, Any]) -> None:
    dark = browse(page, dark=True)
    assert dark["errors"] == []
    assert luminance(seen["ground"]) > 0.9 > 0.1 > luminance(dark["ground"])
    for look in (seen, dark):
        high, low = sorted((luminance(look["ink"]), luminance(look["ground"])), reverse=True)
        assert (high + 0.05) / (low + 0.05) > 7, "WCAG AAA"


def test_a_phone_scrolls_tables_and_not_the_page(page: Path) -> None:
    frame = page.with_name("phone.html")
    # Chromium's own window is never narrower than 500 px; a frame is.
    frame.write_text(
        f'<iframe id="phone" width="390" height="800" style="border:0" '
        f'srcdoc="{html.escape(page.read_text())}">'
        "</iframe><script>onload = () => { const inside = document.getElementById('phone').contentDocument;"
        "document.body.append(inside.getElementById('seen')); }</script>"
    )
    seen = browse(frame)
    assert seen["errors"] == []
    assert seen["overflow"] <= 0
    assert all(200 < chart["width"] <= 390 for chart in seen["charts"])


@pytest.mark.usefixtures("few_rows_in_the_plane")
def test_the_command_writes_the_page(
    cli: Callable[..., Outcome], toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli("train", "--cache", toy_cache, "--epochs", 1, "--out", "run")
    done = cli("report", "run", "-o", "page.html", "--no-figures")
    assert done.status == 0, done.err
    assert "report: page.html" in done.out
    assert Path("page.html").read_text().startswith("<!doctype html>")
    wrong = cli("report", "run", "--cache", "nowhere")
    assert wrong.status == 1
    assert "error: run run: its cache nowhere is gone" in wrong.err
