"""The page: what its server answers and refuses, and what a reader does in a real Chromium, where one is.

In the browser a script plays the reader: it types, drops a file, clicks a result, filters, and writes what it
saw into the document, which `--dump-dom` prints. It is served as the page's own scripts are, under its
policy.
"""

import base64
import html
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from spaner.align.train.run import Run
from spaner.errors import RunError
from spaner.search import sources
from spaner.search.browse.answers import Answers
from spaner.search.browse.server import BrowseServer, serve
from spaner.search.embed import fill
from spaner.search.index import Indexed, build
from spaner.search.indexed import open_index
from spaner.search.query import Asker
from tests.conftest import Outcome
from tests.search.conftest import PICTURES, SOUNDS

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
HERE = Path(__file__).parent
HOSTILE = "<img src=x onerror=seen.errors.push(1)>&\"'\u202egnp.\x1b[2J.png"


@pytest.fixture(scope="module")
def place(run: Run, run_folder: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and sounds, one of hostile name, one that vanishes and one that turns into a page later."""
    top = tmp_path_factory.mktemp("browse")
    shutil.copytree(files, top / "files")
    first, second, third = sorted((top / "files" / "zero").glob("*.png"))[:3]
    (top / "files" / "<b>bold & co").mkdir()
    first.rename(top / "files" / "<b>bold & co" / HOSTILE)
    import spaner

    source = sources.gather([top / "files"])
    done = fill(run, source, top / "index" / "embedded", None, None, None, lambda encoder: encoder)
    cache = spaner.open(top / "index" / "embedded")
    tables = [Indexed(cache, table.name, source.root) for table in done]
    build(run, str(run_folder), tables, top / "index")
    second.unlink()
    third.write_text("<html><script>alert(1)</script>")
    return top


@pytest.fixture(scope="module")
def server(run: Run, place: Path) -> Iterator[BrowseServer]:
    answers = Answers(open_index(place / "index"), Asker(run), "mine <b>")
    with serve(answers, 0) as listening:
        Thread(target=listening.serve_forever, daemon=True).start()
        yield listening
        listening.shutdown()


def get(server: BrowseServer, way: str, method: str = "GET", body: bytes = b"", **headers: Any) -> Any:
    """Status, headers and body; `Host` may be given."""
    port = server.server_address[1]
    link = HTTPConnection("127.0.0.1", port, timeout=60)
    link.request(method, way, body or None, {"Host": f"127.0.0.1:{port}"} | headers)
    answer = link.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    link.close()
    return found


def rows(server: BrowseServer) -> dict[str, dict[str, Any]]:
    """Every row by its id."""
    hits = json.loads(get(server, "/api/rows?k=500")[2])["hits"]
    return {hit["id"]: hit for hit in hits}


def test_it_answers_its_own_host_name_alone(server: BrowseServer) -> None:
    port = server.server_address[1]
    assert server.server_address[0] == "127.0.0.1"
    assert get(server, "/")[0] == 200
    assert get(server, "/", Host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.evil.example:{port}", ""):
        status, _, body = get(server, "/api/about", Host=host)
        assert status == 403, host
        assert b"classes" not in body
    refused: list[dict[str, Any]] = [
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
    ]
    for foreign in refused:
        assert get(server, "/api/about", **foreign)[0] == 403
        assert get(server, "/api/drop", "POST", b"x", **foreign)[0] == 403


def test_the_page_may_load_nothing_from_elsewhere(server: BrowseServer) -> None:
    for way in ("/", "/page.js", "/cards.js", "/page.css"):
        status, headers, body = get(server, way)
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(rb"(?:src|href)=.https?:|@import|url\(", body)


def test_rows_are_shown_by_number_and_files_by_no_path(server: BrowseServer, place: Path) -> None:
    listed = rows(server)
    assert len(listed) == PICTURES + SOUNDS
    picture = next(hit for hit in listed.values() if hit["class"] == "two" and hit["modality"] == "image")
    status, headers, body = get(server, f"/thumbnail/{picture['row']}")
    assert (status, headers["Content-Type"], body[:4]) == (200, "image/png", b"\x89PNG")
    sound = next(hit for hit in listed.values() if hit["modality"] == "audio")
    status, headers, body = get(server, f"/sound/{sound['row']}")
    assert (status, headers["Content-Type"], body[:4]) == (200, "audio/wav", b"RIFF")
    bars = json.loads(get(server, f"/api/bars?row={sound['row']}")[2])
    assert len(bars) == 56
    assert max(bars) == 1
    nowhere = ["99999", "-1", "../../etc/passwd", "", "%2e%2e%2fpage.js", "1/2", "x"]
    ways = [f"/thumbnail/{name}" for name in nowhere] + ["/etc/passwd", "/files/zero", "/api/known"]
    for way in [*ways, f"/sound/{picture['row']}", f"/thumbnail/{sound['row']}"]:
        assert get(server, way)[0] == 404, way
    assert str(place) not in get(server, "/api/rows?k=500")[2].decode(), "no path of this machine"


def test_what_vanished_or_changed_is_not_shown_raw(server: BrowseServer, place: Path) -> None:
    gone = [h for key, h in rows(server).items() if h["modality"] == "image" and h["class"] == "zero"][:2]
    for hit in gone:
        status, headers, body = get(server, f"/thumbnail/{hit['row']}")
        assert status == 404
        assert headers["Content-Type"].startswith("application/json")
        assert b"<script" not in body
        assert json.loads(body)["error"].startswith(("file not found", "not an image"))


def test_words_rows_and_files_ask(server: BrowseServer, files: Path) -> None:
    found = json.loads(get(server, "/api/search?q=seven&k=5&space=both&modality=image")[2])
    assert [len(found["hits"][space]) for space in ("trained", "frozen")] == [5, 5]
    assert {hit["modality"] for hit in found["hits"]["trained"]} == {"image"}
    assert found["classes"][0]["name"] == "seven"
    row = found["hits"]["trained"][0]["row"]
    like = json.loads(get(server, f"/api/like?row={row}&k=1")[2])
    assert like["hits"]["trained"][0]["row"] == row == like["asked"]["row"]
    for file in (next((files / "two").glob("*.png")), next((files / "two").glob("*.wav"))):
        body = file.read_bytes()
        drop = json.loads(get(server, f"/api/drop?k=1&name={file.name}", "POST", body)[2])
        assert drop["hits"]["trained"][0]["id"] == f"two/{file.name}"
    sound = json.loads(get(server, "/api/drop?name=a.wav&space=frozen&modality=image", "POST", body)[2])
    assert sound["hits"]["frozen"] == []


@pytest.mark.parametrize(
    ("way", "body", "said"),
    [
        ("/api/search?q=", b"", "empty"),
        ("/api/search?q=a&class=nothing", b"", "--class nothing: not in"),
        ("/api/like?row=1000000", b"", "row 1000000: expected 0 to"),
        ("/api/like?row=x", b"", "expected a whole number"),
        ("/api/drop?name=a.png", b"no picture", "not an image"),
        ("/api/drop?name=a.wav", b"no sound", "not audio"),
        ("/api/drop?name=a.png", b"", "expected at most 64 MiB"),
    ],
)
def test_mistakes_are_said_in_one_line(server: BrowseServer, way: str, body: bytes, said: str) -> None:
    status, _, answer = get(server, way, "POST" if "drop" in way else "GET", body)
    assert status == 400
    error = json.loads(answer)["error"]
    assert said in error
    assert "\n" not in error


def test_a_hundred_megabytes_are_not_read(server: BrowseServer) -> None:
    port = server.server_address[1]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
        head = f"POST /api/drop HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 104857600\r\n\r\n"
        link.sendall(head.encode())
        with link.makefile("rb") as answer:
            assert b"105 MB; expected at most 64 MiB" in answer.read()


def test_nothing_is_written(server: BrowseServer, place: Path, files: Path) -> None:
    def listing() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()}

    before = listing()
    get(server, "/api/search?q=nine")
    get(server, "/api/drop?name=a.png", "POST", next(files.rglob("*.png")).read_bytes())
    get(server, "/thumbnail/3")
    assert listing() == before


def test_a_port_in_use(server: BrowseServer, cli: Callable[..., Outcome], place: Path) -> None:
    port = server.server_address[1]
    with pytest.raises(RunError, match="Address already in use"):
        serve(server.answers, port)
    done = cli("browse", place / "index", "--port", port)
    assert done.status == 1
    assert (
        f"--port {port}: Address already in use; expected a free port; type `--port {port + 1}`" in done.err
    )


# --- the reader ---


@pytest.fixture(scope="module")
def played(server: BrowseServer, files: Path) -> BrowseServer:
    """The same server, whose page has a script that plays the reader."""
    picture, sound = (next((files / "two").glob(ending)).read_bytes() for ending in ("*.png", "*.wav"))
    facts = {"PICTURE": base64.b64encode(picture).decode(), "SOUND": base64.b64encode(sound).decode()}
    consts = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in facts.items())
    kind, page = server.page["/"]
    page = page.replace(
        b'<link rel="stylesheet"', b'<script src="/listen.js"></script><link rel="stylesheet"'
    )
    page = page.replace(b"</body>", b'<script src="/play.js"></script></body>')
    server.page |= {
        "/": (kind, page),
        "/listen.js": ("text/javascript", (HERE / "listen.js").read_bytes()),
        "/play.js": ("text/javascript", consts.encode() + (HERE / "play.js").read_bytes()),
    }
    return server


def browse(server: BrowseServer, profile: Path, width: int = 1280, *, dark: bool = False) -> dict[str, Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=60000"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={profile}", f"--window-size={width},900"),
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]
    done = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", server.url], capture_output=True, text=True, timeout=240
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the script did not finish: {done.stderr[-2000:]} {done.stdout[-1500:]}"
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def seen(played: BrowseServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return browse(played, tmp_path_factory.mktemp("profile"))


def test_no_errors_and_nothing_from_elsewhere(seen: dict[str, Any]) -> None:
    assert seen["errors"] == []
    assert seen["requests"] == []


def test_it_starts_with_all_rows(seen: dict[str, Any]) -> None:
    assert seen["start"]["said"] == f"{PICTURES + SOUNDS} rows"
    assert seen["start"]["count"] == PICTURES + SOUNDS
    assert seen["waves"] > 0
    assert seen["title"] == "mine <b> · spaner"


def test_names_are_text_and_broken_pictures_say_so(seen: dict[str, Any]) -> None:
    assert seen["brand"] == "mine <b>"
    assert seen["injected"] == 0
    assert seen["hostile"] == ["<b>bold & co"]
    assert seen["lost"] == 2


def test_typing_finds(seen: dict[str, Any]) -> None:
    assert seen["typed"]["said"].endswith("by cosine")
    assert seen["typed"]["near"][0] == "seven"
    assert seen["sounds"]["count"] == SOUNDS
    assert seen["both"]["columns"] == 2
    assert seen["slash"] == "words"


def test_clicking_finds_what_is_like_it_and_back_goes_back(seen: dict[str, Any]) -> None:
    assert seen["clicked"]["same"]
    assert seen["clicked"]["at"].startswith("?like=")
    assert seen["back"] == "seven"


def test_dropping_finds(seen: dict[str, Any]) -> None:
    assert seen["veil"]
    assert seen["dropped"]["names"][0] == "two"
    assert seen["dropped"]["first"].endswith(".png")
    assert seen["heard"]["first"].endswith(".wav")
    assert seen["broken"]["error"] == "error"
    assert "not an image" in seen["broken"]["said"]


def test_an_empty_result_says_so(seen: dict[str, Any]) -> None:
    assert seen["empty"]["count"] == 0
    assert "Nothing found" in seen["empty"]["said"]


def test_the_keyboard_walks_and_every_control_has_a_name(seen: dict[str, Any]) -> None:
    assert seen["walked"] == seen["columns"], "right, down and left is one row below"
    assert seen["unnamed"] == 0


def test_dark_and_phone(played: BrowseServer, tmp_path: Path, seen: dict[str, Any]) -> None:
    dark = browse(played, tmp_path / "profile", 500, dark=True)
    assert dark["errors"] == []
    assert dark["overflow"] <= 0
    light, night = (
        [sum(map(int, re.findall(r"\d+", look[k])[:3])) for k in ("ground", "ink")] for look in (seen, dark)
    )
    assert light[0] > 690 > 150 > light[1]
    assert night[0] < 150 < 690 < night[1]
