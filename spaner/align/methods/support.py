"""The support set of a few-shot head: rows per class, class means, and the text vectors it is trained with.

What several heads need of their training rows, in the dtype of the input. Knows no method.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spaner.align.methods.task import Task, Texts
from spaner.errors import Mismatch, RunError


def require_rows(method: str, task: Task) -> None:
    """RunError that names a class which has no training row, for heads that need one of every class."""
    counts = task.labels.bincount(minlength=len(task.class_names))
    empty = [name for name, count in zip(task.class_names, counts.tolist(), strict=True) if not count]
    if empty:
        raise RunError(
            f"{method} needs a row of every class, "
            f"found none of {empty[0]!r} ({len(empty):,} such classes of {len(task.class_names):,}); "
            "draw from a split that has them, or use --method tip_adapter"
        )


def require_one_width(method: str, task: Task) -> None:
    """Mismatch unless images and texts can be compared as they are."""
    if len(set(task.widths.values())) > 1:
        found = ", ".join(f"{modality} {width}" for modality, width in task.widths.items())
        raise Mismatch(
            f"{method} compares embeddings of two modalities, and their widths differ ({found}); "
            "expected one encoder for both; use --method spaner, which maps them into one space, "
            "or linear_probe"
        )


def shots(task: Task) -> int:
    """Rows per class, rounded; at least one."""
    return max(1, round(len(task.labels) / len(task.class_names)))


def trained_texts(task: Task) -> Texts:
    """The template set that the task trains with, lengths kept."""
    return task.texts[task.templates]


def class_sums(values: Float[Tensor, "n D"], labels: Int[Tensor, " n"], classes: int) -> Float[Tensor, "K D"]:
    """Sum of each class's rows."""
    sums = torch.zeros(classes, values.shape[1], dtype=values.dtype, device=values.device)
    return sums.index_add(0, labels, values)


def class_means(
    values: Float[Tensor, "n D"], labels: Int[Tensor, " n"], classes: int
) -> Float[Tensor, "K D"]:
    """Mean of each class's rows; nan for a class without rows."""
    return class_sums(values, labels, classes) / labels.bincount(minlength=classes)[:, None].to(values.dtype)


def column_sums(
    values: Float[Tensor, "B n"], labels: Int[Tensor, " n"], classes: int
) -> Float[Tensor, "B K"]:
    """Sum over the columns of each class: the product with a one-hot matrix, without the matrix.

    Columns in class order with equally many of each, as a few-shot draw sorted by class has, need one
    reduction.
    """
    rows, columns = values.shape
    if columns % classes == 0:
        each = torch.arange(classes, device=labels.device).repeat_interleave(columns // classes)
        if torch.equal(each, labels):
            return values.view(rows, classes, -1).sum(2)
    sums = torch.zeros(rows, classes, dtype=values.dtype, device=values.device)
    return sums.index_add(1, labels, values)


def one_hot(labels: Int[Tensor, " n"], classes: int, dtype: torch.dtype) -> Float[Tensor, "n K"]:
    """A row of zeros with a one at the label."""
    return torch.nn.functional.one_hot(labels, classes).to(dtype)
