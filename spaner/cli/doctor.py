"""`spaner doctor`: one page about this machine and this data, and the line that mends each problem."""

import os
import platform
import shutil
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.cli import console

PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "torchaudio": "torchaudio",
    "open_clip_torch": "open_clip",
    "zarr": "zarr",
    "h5py": "h5py",
    "numpy": "numpy",
    "scikit-learn": "sklearn",
    "soundfile": "soundfile",
    "safetensors": "safetensors",
}
"""Distribution -> module that must import."""

EXTRAS = {"transformers": "clap", "ray": "ray"}
"""Distribution -> the extra of spaner that brings it."""

LEAST_FREE = 10**9
"""Bytes: a 16-shot ImageNet cache is 66,000 rows of two views in float16, 0.14 GB; the rest is for runs."""


def doctor(
    *,
    caches: Annotated[
        Path, console.cache_option("Folder of caches, or an address: s3://bucket/caches.")
    ] = Path("cache"),
    verify: Annotated[bool, typer.Option(help="Check every byte of every cache; reads all of them.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """One page about this machine and this data, with the line that mends each problem.

    Example: `spaner doctor`
    """
    page = examine(caches, verify=verify)
    if json:
        console.dump(page)
        return
    show(page)


def examine(caches: Path, *, verify: bool = False) -> dict[str, Any]:
    """Everything on the page, as JSON types. `problems` pairs what is wrong with what mends it."""
    from spaner.cache.survey import survey
    from spaner.extract.datasets.dataset import roots

    packages, broken = installed()
    data = [asdict(root) for root in roots()]
    kept = place_of(caches)
    readable = kept.pop("readable")
    surveyed = survey(caches, verify=verify) if readable else []
    found = [asdict(each) | {"path": str(each.path)} for each in surveyed]
    machine = compute() if "torch" not in broken else {}
    problems = [*broken.values(), *machine.pop("problems", [])]
    problems += [root["problem"] for root in data if root["problem"]]
    problems += [problem for cache in found for problem in cache["problems"]]
    problems += kept.pop("problems")
    if readable and not found:
        problems.append(f"no cache in {caches}; type `spaner extract --dataset digits` for the embedded one")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "machine": machine,
        "data": data,
        "caches": found,
        **kept,
        "problems": problems,
    }


def place_of(caches: Path) -> dict[str, Any]:
    """Where the caches are to lie: room, how writers are kept apart, and at an address what it lets us do."""
    from spaner.cache.address import Address
    from spaner.cache.lock import method_of
    from spaner.cache.survey import reach

    if isinstance(caches, Address):
        tried = asdict(reach(caches))
        told = {name: tried[name] for name in ("readable", "problems")}
        locks = {"method": "claims", "why": f"{caches} is an address"}
        return {"free_bytes": None, "locks": locks, "address": {"name": str(caches), **tried}, **told}
    disk = shutil.disk_usage(nearest(caches)).free
    locks, why = method_of(nearest(caches))
    problems = []
    if disk < LEAST_FREE:
        problems.append(
            f"{console.size(disk)} free at {caches}, "
            f"an ImageNet cache with its runs wants {console.size(LEAST_FREE)}; "
            "free some, or choose another disk with --cache PATH"
        )
    locked = {"method": locks, "why": why}
    return {"free_bytes": disk, "locks": locked, "address": None, "readable": True, "problems": problems}


def nearest(path: Path) -> Path:
    """The path itself, or the folder above that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def installed() -> tuple[dict[str, str | None], dict[str, str]]:
    """Versions (None: absent), and for each package that does not import a line that mends it."""
    versions: dict[str, str | None] = {}
    broken = {}
    for name in ["spaner", *PACKAGES, *EXTRAS]:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    for name, module in PACKAGES.items():
        try:
            import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            broken[name] = (
                f"{name} {versions[name] or 'is absent'} and does not import ({reason}); "
                "type `pip install --force-reinstall spaner` for versions that fit together"
            )
    return versions, broken


def compute() -> dict[str, Any]:
    """Devices, threads, and the arithmetic that `--precision auto` takes in either stage, with the reason."""
    import torch

    from spaner.device import device_of, encoder_precision, precision_of

    device = device_of()
    flags = torch.cpu.get_capabilities()
    hardware = [name for name in ("amx_bf16", "avx512_bf16") if flags.get(name)]
    why = {
        "cuda": "a CUDA device multiplies half precision fastest",
        "mps": "float32 is what MPS does everywhere",
        "cpu": f"the processor has {', '.join(hardware)}"
        if hardware
        else "the processor has no bfloat16 product",
    }[device.type]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    training = str(precision_of("auto", device)).removeprefix("torch.")
    cores, threads = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        torch.get_num_threads(),
    )
    problems = []
    if threads > cores:
        problems.append(
            f"{threads} threads on {cores} cores slow each other; type `export OMP_NUM_THREADS={cores}`"
        )
    return {
        "device": str(device),
        "gpus": gpus,
        "cores": cores,
        "threads": threads,
        "extract_precision": encoder_precision("auto", device),
        "extract_why": why,
        "train_precision": training,
        "problems": problems,
    }


def show(page: dict[str, Any]) -> None:
    """The page: machine, data, caches, problems."""
    versions = page["packages"]
    console.say(f"spaner {versions.pop('spaner')} · Python {page['python']} · {page['system']}")
    console.say(" · ".join(f"{name} {found}" for name, found in versions.items() if found))
    for name, extra in EXTRAS.items():
        if not versions[name]:
            console.say(f'without {name}: only needed for the extra, `pip install "spaner[{extra}]"`')
    show_machine(page["machine"])
    if page["address"]:
        words = {True: "yes", False: "NO", None: "not tried"}
        kinds = ("readable", "writable", "conditional")
        told = ", ".join(f"{name} {words[page['address'][name]]}" for name in kinds)
        console.say(f"{page['address']['name']}: {told} (put only where there is none, for claims)")
    else:
        console.say(f"free disk: {console.size(page['free_bytes'])}")
    how = {"flock": "locks", "claims": "claim files, taken over after a minute without a beat"}
    kept = how[page["locks"]["method"]]
    console.say(f"writers of a cache here are kept apart by {kept}: {page['locks']['why']}\n")
    for root in page["data"]:
        classes = f"{root['classes']:,} classes: {counts(root['splits'])}" if root["classes"] else "not found"
        console.say(f"{root['name']:<16} {classes}")
    console.say("")
    if page["caches"]:
        columns = ["cache", "sealed tables", "rows", "unfinished", "verified"]
        console.table(columns, [cache_row(cache) for cache in page["caches"]])
        console.say("")
    console.say(
        f"{len(page['problems'])} to mend, where you need it:" if page["problems"] else "nothing to mend"
    )
    for problem in page["problems"]:
        console.say(f"  {problem}")


def show_machine(machine: dict[str, Any]) -> None:
    if not machine:
        return
    gpus = f" ({', '.join(machine['gpus'])})" if machine["gpus"] else ""
    mixed = machine["device"] == "cpu" and machine["train_precision"] == "bfloat16"
    small = ", small batches float32" if mixed else ""
    console.say(f"device: {machine['device']}{gpus}, {machine['cores']} cores, {machine['threads']} threads")
    console.say(
        f"precision: extraction {machine['extract_precision']}, since {machine['extract_why']}; "
        f"training {machine['train_precision']}{small}"
    )


def counts(splits: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in splits.items())


def cache_row(cache: dict[str, Any]) -> list[str]:
    verified = {None: "type --verify", True: "yes", False: "NO"}[cache["verified"]]
    numbers = [len(cache["tables"]), sum(cache["tables"].values()), len(cache["unsealed"])]
    return [cache["path"], *(f"{number:,}" for number in numbers), verified]
