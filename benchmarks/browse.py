"""How long the page of `spaner browse` waits for its answers, with few rows and with many.

    python benchmarks/browse.py index/digits                    its own rows, and 100,000
    python benchmarks/browse.py index/digits --rows 1000000

The rows of the index's last table are repeated until there are as many as asked for, in a temporary folder;
the page's own server answers over HTTP on this machine. Milliseconds are medians of `--repeats` questions,
the first of each kind left out; "words" pass through the text encoder, all others read the index alone.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread

import numpy as np

from spaner.search.browse.answers import Answers
from spaner.search.browse.server import serve
from spaner.search.indexed import Index, open_index
from spaner.search.query import Asker

ASKED = {
    "header and filters": "/api/about",
    "the first rows": "/api/rows?k=60",
    "the last rows": "/api/rows?k=60&start={last}",
    "rows of a class": "/api/rows?k=60&class={name}",
    "words": "/api/search?k=60&q=a+photo+of+{name}",
    "words, both spaces": "/api/search?k=60&space=both&q=a+photo+of+{name}",
    "like a row": "/api/like?k=60&row={last}",
    "a thumbnail": "/thumbnail/{last}",
}


def grown(index: Index, rows: int, folder: Path) -> Index:
    """The index with the rows of its last table repeated."""
    shutil.copytree(index.path, folder, ignore=shutil.ignore_patterns("embedded", "graph.usearch"))
    facts = json.loads((folder / "index.json").read_text())
    last = facts["tables"][-1]
    each = last["stop"] - last["start"]
    times = max(1, -(-(rows - last["start"]) // each))
    for file in ("vectors.npy", "labels.npy", "ids.npy", f"frozen-{last['table'].partition('/')[0]}.npy"):
        if (folder / file).exists():
            x = np.load(folder / file)
            parts = [x[: len(x) - each], np.tile(x[len(x) - each :], (times, *[1] * (x.ndim - 1)))]
            np.save(folder / file, np.concatenate(parts))
    last["stop"] = facts["rows"] = last["start"] + each * times
    (folder / "index.json").write_text(json.dumps(facts))
    return open_index(folder)


def waits(answers: Answers, repeats: int) -> dict[str, float]:
    """Kind of question -> median milliseconds until the whole answer is there."""
    told = {"last": len(answers.index) - 60, "name": answers.index.class_names[0].replace(" ", "+")}
    found = {}
    with serve(answers, 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for kind, way in ASKED.items():
            times = []
            for _ in range(repeats + 1):
                began = time.perf_counter()
                link = HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
                link.request("GET", way.format(**told))
                answer = link.getresponse()
                answer.read()
                assert answer.status == 200, way
                link.close()
                times.append(1e3 * (time.perf_counter() - began))
            found[kind] = statistics.median(times[1:])
        server.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    small = open_index(options.index)
    asker = Asker(small.run())
    with tempfile.TemporaryDirectory() as folder:
        large = grown(small, options.rows, Path(folder) / "index")
        few, many = (waits(Answers(each, asker, "browse"), options.repeats) for each in (small, large))
        print(f"{'ms':22}{len(small):>10,} rows{len(large):>10,} rows")
        for kind, least in few.items():
            print(f"{kind:22}{least:15.1f}{many[kind]:15.1f}")


if __name__ == "__main__":
    main()
