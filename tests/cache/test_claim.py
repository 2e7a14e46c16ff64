"""Claims where locks do not reach: two hosts, simulated by their names, on one folder."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import spaner.cache
from spaner.cache import lock
from spaner.cache.claim import BEATS, Claim, host
from spaner.cache.lock import hold, method_of
from spaner.errors import Busy, CacheError

SILENCE = 0.5


def claim(path: Path, where: str = "first", **how: Any) -> Claim:
    return Claim(path, "part 1 of the cache", silence=SILENCE, where=where, **how)


def suspend(held: Claim) -> None:
    """What a stopped process, or one whose network is gone, looks like to others: no more beats."""
    held._done.set()
    held._thread.join()


def test_a_live_claim_of_another_host_is_left_alone(tmp_path: Path) -> None:
    with (
        claim(tmp_path / "c"),
        pytest.raises(Busy, match=rf"^part 1 of the cache is being written by process {os.getpid()} on fi"),
    ):
        claim(tmp_path / "c", "second")
    assert list(tmp_path.iterdir()) == []


def test_a_silent_claim_is_taken_over_and_its_holder_notices(tmp_path: Path) -> None:
    first = claim(tmp_path / "c")
    suspend(first)
    began = time.monotonic()
    second = claim(tmp_path / "c", "second")
    assert time.monotonic() - began >= SILENCE
    assert first.lost
    assert not second.lost
    first.release()  # it comes back, and must not remove what is another's now
    assert not second.lost
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_no_clock_of_another_host_matters(tmp_path: Path) -> None:
    """A host whose clock is a day ahead or behind: times of files say nothing, beats do."""
    with claim(tmp_path / "c"):
        for off in (-86_400, 86_400):
            os.utime(tmp_path / "c", (time.time() + off, time.time() + off))
            with pytest.raises(Busy):
                claim(tmp_path / "c", "second")


@pytest.mark.parametrize("off", [-86_400, 86_400])
def test_who_died_while_he_took_a_claim_over_is_missed_by_ones_own_clock(off: int, tmp_path: Path) -> None:
    silence, guard = 0.05, tmp_path / "c.breaking"
    suspend(Claim(tmp_path / "c", "it", silence=silence, where="first"))
    guard.write_bytes(b"somebody")
    os.utime(guard, (time.time() + off, time.time() + off))
    began = time.monotonic()
    second = Claim(tmp_path / "c", "it", silence=silence, where="second")
    assert time.monotonic() - began >= 10 * silence
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_ended_on_this_host_is_replaced_at_once(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from spaner.cache.claim import Claim\n"
        f"Claim(Path({str(tmp_path / 'c')!r}), 'it', silence=60); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    told = json.loads((tmp_path / "c").read_text())
    assert told["host"] == host()
    Claim(tmp_path / "c", "it", silence=60).release()


def test_a_beat_follows_no_link(tmp_path: Path) -> None:
    with claim(tmp_path / "c") as held:
        (tmp_path / "victim").write_bytes((tmp_path / "c").read_bytes())
        before = (tmp_path / "victim").read_bytes()
        (tmp_path / "c").unlink()
        (tmp_path / "c").symlink_to("victim")
        time.sleep(3 * held.silence / BEATS)
        assert (tmp_path / "victim").read_bytes() == before


def test_shared_claims_stand_together_and_against_a_whole_one(tmp_path: Path) -> None:
    with (
        claim(tmp_path / "c", shared=True),
        claim(tmp_path / "c", "second", shared=True),
        pytest.raises(Busy),
    ):
        claim(tmp_path / "c", "third")
    with claim(tmp_path / "c"), pytest.raises(Busy):
        claim(tmp_path / "c", "second", shared=True)
    assert list(tmp_path.iterdir()) == []


def test_many_who_wait_hold_it_one_at_a_time(tmp_path: Path) -> None:
    inside, most = [], []

    def work(name: str) -> None:
        for _ in range(5):
            with claim(tmp_path / "c", name, wait=True):
                inside.append(name)
                most.append(len(inside))
                time.sleep(0.001)
                inside.remove(name)

    threads = [threading.Thread(target=work, args=(f"host {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20


def test_a_claim_that_is_just_being_made_is_left_alone_for_a_silence(tmp_path: Path) -> None:
    """It is empty until it is written, and on a busy machine its maker may have to wait in between."""
    (tmp_path / "c").touch()
    began = time.monotonic()
    with claim(tmp_path / "c", "second", wait=True):
        assert time.monotonic() - began >= SILENCE
    assert list(tmp_path.iterdir()) == []


def test_of_many_who_see_a_dead_claim_one_takes_it(tmp_path: Path) -> None:
    suspend(claim(tmp_path / "c"))
    taken, refused = [], []

    def take(name: str) -> None:
        try:
            taken.append(claim(tmp_path / "c", name))
        except Busy:
            refused.append(name)

    threads = [threading.Thread(target=take, args=(f"host {i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 5)
    taken[0].release()


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    def mount(kind: str, options: str) -> None:
        monkeypatch.setattr(lock, "mount_of", lambda folder: (kind, options.split(",")))
        lock._method_of.cache_clear()

    yield mount
    lock._method_of.cache_clear()


@pytest.mark.parametrize(
    ("kind", "options", "method"),
    [
        ("ext4", "rw", "flock"),
        ("nfs4", "rw,vers=4.2", "flock"),
        ("nfs", "rw,nolock", "claims"),
        ("nfs4", "rw,local_lock=flock", "claims"),
        ("lustre", "rw,flock", "flock"),
        ("lustre", "rw,localflock", "claims"),
        ("fuse.sshfs", "rw", "claims"),
        ("cifs", "rw", "claims"),
    ],
)
def test_the_file_system_decides(
    kind: str, options: str, method: str, mounted: Callable[[str, str], None], tmp_path: Path
) -> None:
    mounted(kind, options)
    assert method_of(tmp_path)[0] == method
    with hold(tmp_path / "c", "it") as held:
        assert isinstance(held, Claim) == (method == "claims")


def test_this_folder_has_locks_and_the_variable_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lock.mount_of(tmp_path)[0]
    monkeypatch.setenv("SPANER_LOCKS", "claims")
    assert method_of(tmp_path) == ("claims", "$SPANER_LOCKS says so")
    monkeypatch.setenv("SPANER_LOCKS", "both")
    with pytest.raises(CacheError, match=r"\$SPANER_LOCKS is 'both'; expected flock or claims"):
        method_of(tmp_path)


def test_a_cache_is_written_under_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setenv("SPANER_LOCKS", "claims")
    with spaner.cache.create(tmp_path / "cache", "toy", ["a", "b"]) as cache:
        cache.add("image", "train", np.ones((4, 3), np.float32), np.array([0, 1, 0, 1]), encoder="mine")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
