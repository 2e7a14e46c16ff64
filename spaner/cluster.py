"""A Ray cluster: joined, and given work; what `--on ray` means for every command.

Needs Ray (the extra ``ray``) only where a cluster is joined, and nothing of a room. What runs on a node is
sent by value and first looks whether the node has this version of spaner: where not, one line says so.
Nothing is repeated here: a process or node that dies is `Lost`, and the caller knows what that costs.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spaner
from spaner import errors, head
from spaner.errors import RecipeError, RunError, SpanerError

HELP = "run on the nodes of a Ray cluster: ray, or ray:HOST:PORT (needs 'spaner[ray]')"
SEEN_SECONDS = 3.0
"""How long a file system may take to show on one node what another has written."""
TRIES = 3
"""How often work is tried whose process or node dies, before it counts as failed."""
CARRIED = ("SPANER_", "HF_", "AWS_", "FSSPEC_", "IMAGENET_ROOT", "ESC50_ROOT")
"""How the names of environment variables begin that spaner reads, and that nodes get from the driver."""


class Lost(Exception):
    """The process or node that had the work has died; the message says how."""


@dataclass(frozen=True)
class Slot:
    """What one worker takes of a node."""

    cpus: int = 1
    gpus: int = 0


@dataclass(frozen=True)
class Place:
    """Where the command was typed: its folder, and what the environment says to spaner."""

    folder: str
    environment: dict[str, str]

    @classmethod
    def here(cls) -> "Place":
        """That of this process."""
        told = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        return cls(str(Path.cwd()), told)

    def enter(self) -> None:
        """Work there too, so that relative paths mean the same; a node that lacks the folder needs none if
        every path is absolute."""
        os.environ.update(self.environment)
        with suppress(OSError):
            os.chdir(self.folder)


class Cluster:
    """A cluster that was joined; made by `joined`."""

    def __init__(self, ray: Any, on: str) -> None:
        self.ray, self.on, self.place = ray, on, Place.here()
        self.address = ray.get_runtime_context().gcs_address

    def nodes(self) -> list[tuple[int, int]]:
        """Processors and GPUs of every node that can work."""
        told = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        found = [(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in told]
        return [(cpus, gpus) for cpus, gpus in found if cpus > 0]

    def slot(self, device: str) -> Slot:
        """A GPU with its share of the node's processors, or one processor.

        Raises:
            RecipeError: no node has processors, or none has the GPU that `device` wants.
        """
        nodes = self.nodes()
        if not nodes:
            raise RecipeError(f"--on {self.on}: the cluster has no processors; start nodes with --num-cpus")
        shares = [max(1, cpus // gpus) for cpus, gpus in nodes if gpus]
        if device.startswith("cuda") and not shares:
            raise RecipeError(
                f"--on {self.on} with --device {device}: no node of the cluster has a GPU; start nodes with "
                "--num-gpus, or type `--device cpu`"
            )
        return Slot(min(shares), 1) if shares and device.startswith(("cuda", "auto")) else Slot()

    def workers(self, asked: int | None, device: str) -> tuple[int, Slot]:
        """How many that stay, and what each takes: one a GPU, else one a node, or as many as are asked for.

        Raises:
            RecipeError: as for `slot`.
        """
        slot, nodes = self.slot(device), self.nodes()
        if slot.gpus:
            return asked or sum(gpus for _, gpus in nodes), slot
        each = min(cpus for cpus, _ in nodes)
        while asked and each > 1 and sum(cpus // each for cpus, _ in nodes) < asked:
            each -= 1
        return asked or sum(cpus // each for cpus, _ in nodes), Slot(each)

    def start(self, slot: Slot, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function on some node, once; a reference for `value`."""
        run = self.ray.remote(_sides(spaner.__version__)[0])
        options = {"num_cpus": slot.cpus, "num_gpus": slot.gpus, "max_retries": 0, "name": "spaner"}
        return run.options(**options).remote(self._packed(function, args))

    def hold(self, slot: Slot, function: Callable[..., Any], *args: Any) -> Any:
        """An actor that keeps what the function makes on some node; `ask` calls its methods, two at once."""
        holder = self.ray.remote(_sides(spaner.__version__)[1])
        options = {"num_cpus": slot.cpus, "num_gpus": slot.gpus, "max_restarts": 0, "max_concurrency": 2}
        return holder.options(**options).remote(self._packed(function, args))

    def ask(self, actor: Any, method: str, *args: Any) -> Any:
        """A reference to what a method of the kept object returns."""
        return actor.ask.remote(method, *args)

    def end(self, actor: Any) -> None:
        """End an actor, whatever it does."""
        self.ray.kill(actor)

    def _packed(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
        """A call as bytes, so that a node without spaner can still answer."""
        return self.ray.cloudpickle.dumps((self.place, function, args))

    def done(self, references: Sequence[Any], seconds: float | None = None) -> list[Any]:
        """Those that are done: at least one, unless so many seconds pass."""
        if not references:
            return []
        first = self.ray.wait(list(references), timeout=seconds)[0]
        return first and self.ray.wait(list(references), num_returns=len(references), timeout=0)[0]

    def value(self, reference: Any) -> Any:
        """What a call returned.

        Raises:
            SpanerError: what it raised, with the name of the node. Lost: its process or node has died.
            RunError: the whole cluster has.
        """
        try:
            told = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError:
            raise  # a mistake of ours
        except self.ray.exceptions.RayError as error:
            self.check_there()
            raise Lost(head.words(error)) from None
        if "error" in told:
            raise getattr(errors, told["kind"], SpanerError)(told["error"])
        return told["value"]

    def check_there(self) -> None:
        """Whoever has lost something asks whether there is still a cluster that could do it again.

        Raises:
            RunError: its head has ended.
        """
        for _ in range(TRIES):  # it may be busy with what has just died
            with suppress(OSError):
                return head.check_answer(self.address)
            time.sleep(1)
        raise RunError(
            f"--on {self.on}: the cluster at {self.address} has ended; what was finished is kept; start it "
            "again, and run the same command again"
        )


def check_seen(*paths: Path) -> None:
    """Called on one machine: what another has made is here too, or soon, as networks are slow.

    Raises:
        RunError: something is not.
    """
    deadline = time.monotonic() + SEEN_SECONDS
    for path in paths:
        while not (seen := path.exists()) and time.monotonic() < deadline:
            time.sleep(0.1)
        if not seen:
            raise RunError(
                f"{path} is not seen here; expected a folder that all nodes share; give a path on a shared "
                "file system"
            )


def _sides(version: str) -> tuple[Callable[..., Any], type]:
    """What runs on a node, a function and an actor. They are sent by value, since what is inside a function
    is, and import spaner only after they have looked whether there is one."""

    def guarded(call: Callable[[], Any]) -> dict[str, Any]:
        import socket

        import ray

        name = f"node {ray.util.get_node_ip_address()} ({socket.gethostname()})"
        try:
            import spaner
            from spaner.errors import SpanerError

            found = f"spaner {spaner.__version__}"
        except ImportError:
            found = "no spaner"
        if found != f"spaner {version}":
            wrong = (
                f"{name} has {found}, the command is of spaner {version}; install one version on all nodes"
            )
            return {"error": wrong, "kind": "Mismatch"}
        try:
            return {"value": call()}
        except SpanerError as error:
            return {"error": f"{name}: {error}", "kind": type(error).__name__}

    def run(payload: bytes) -> dict[str, Any]:
        return guarded(lambda: made(payload))

    def made(payload: bytes) -> Any:
        from ray import cloudpickle

        place, function, args = cloudpickle.loads(payload)
        place.enter()
        return function(*args)

    return run, _holder(run, guarded)


def _holder(run: Callable[..., Any], guarded: Callable[..., Any]) -> type:
    class Holder:
        def __init__(self, payload: bytes) -> None:
            self.begun = run(payload)
            self.held = self.begun.pop("value", None)

        def ask(self, method: str, *args: Any) -> dict[str, Any]:
            return self.begun or guarded(lambda: getattr(self.held, method)(*args))

    return Holder


@contextmanager
def joined(on: str) -> Iterator[Cluster]:
    """Be part of a cluster; one that this process has joined already is used and left as it is.

    Raises:
        RecipeError: Ray is not installed, or no cluster answers.
    """
    address = head.address_of(on)
    head.prepare()
    try:
        import ray
    except ImportError:
        raise RecipeError(f'--on {on}: Ray is not installed; type: pip install "spaner[ray]"') from None
    if ray.is_initialized():
        yield Cluster(ray, on)
        return
    with head.inside(ray, on, address):
        yield Cluster(ray, on)
