"""Pen strokes of a scan that was made without recording the pen: its skeleton as points, and as a path.

A scan is enlarged, cut at a grey level and thinned to lines one cell wide (Zhang & Suen, "A Fast Parallel
Algorithm for Thinning Digital Patterns", 1984; a dot of two by two cells is thinned away). `points` are the
cells that are left, a set without order; `path` walks through them from an end of a line, as a pen might
have: the true order was never recorded.

Needs NumPy and SciPy. Everything is a pure function of the scan. It knows no digit and no file.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import zoom

ENLARGED = 3
"""Cells per pixel and side: thinning 8x8 pixels directly would eat strokes of two pixels whole."""

INK = 112
"""Grey level from which an enlarged cell is ink, of 255."""


def skeletons(scans: UInt8[np.ndarray, "N H W"]) -> Bool[np.ndarray, "N h w"]:
    """The lines of every scan, enlarged; thinned side by side until nothing changes."""
    ink = np.asarray(zoom(scans.astype(np.float32), (1, ENLARGED, ENLARGED), order=1)) >= INK
    lines = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    while True:
        before = lines.sum()
        for second in (False, True):
            lines &= ~_removable(lines, second=second)
        if lines.sum() == before:
            return lines[:, 1:-1, 1:-1]


def _removable(lines: Bool[np.ndarray, "N H W"], *, second: bool) -> Bool[np.ndarray, "N H W"]:
    """Cells on a border (south-east first, north-west second) whose removal breaks no line."""
    shifts = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))  # north, clockwise
    around = np.stack([np.roll(lines, shift, (1, 2)) for shift in shifts])
    count = around.sum(0)
    turns = (~around & np.roll(around, -1, 0)).sum(0)
    north, east, south, west = around[0], around[2], around[4], around[6]
    if second:
        free = ~(north & east & west) & ~(north & south & west)
    else:
        free = ~(north & east & south) & ~(east & south & west)
    return lines & (count >= 2) & (count <= 6) & (turns == 1) & free


def points(skeleton: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "K 2"]:
    """(x, y) of every cell of the lines in (0, 1), y downwards, row by row.

    Raises:
        ValueError: there is no ink.
    """
    y, x = np.nonzero(skeleton)
    if not len(x):
        raise ValueError("no ink: nothing in the scan is dark enough to be a stroke")
    height, width = skeleton.shape
    return np.stack([(x + 0.5) / width, (y + 0.5) / height], axis=1).astype(np.float32)


def path(skeleton: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "K 2"]:
    """The points in an order in which a pen could have drawn them: from the uppermost end of a line (or the
    uppermost point, where lines have no end) always to the nearest point that is left.

    Raises:
        ValueError: there is no ink.
    """
    cells = points(skeleton)
    distance = np.linalg.norm(cells[:, None] - cells, axis=2)
    step = 1.5 / min(skeleton.shape)
    neighbours = (distance < step).sum(1) - 1
    ends = np.flatnonzero(neighbours == 1)
    now, order = int(ends[0]) if len(ends) else 0, []
    left = np.ones(len(cells), bool)
    for _ in range(len(cells)):
        order.append(now)
        left[now] = False
        now = int(np.where(left, distance[now], np.inf).argmin())
    return cells[order]


def evenly(walk: Float[np.ndarray, "K 2"], count: int) -> Float[np.ndarray, "count 2"]:
    """`count` points at equal distances along a path; of a single point, that point `count` times."""
    along = np.concatenate([[0.0], np.linalg.norm(np.diff(walk, axis=0), axis=1).cumsum()])
    places = np.linspace(0, along[-1], count)
    return np.stack([np.interp(places, along, walk[:, axis]) for axis in (0, 1)], axis=1).astype(np.float32)
