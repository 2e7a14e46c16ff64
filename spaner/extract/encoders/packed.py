"""A causal transformer over a shared prefix and many short continuations, all rows in one product per layer.

`Blocks` takes open_clip's own residual blocks apart: a prefix (B, P) and groups of continuations (B, n, L),
each of which sees the prefix, what is kept of its own beginning, and itself. Layer norms, projections and the
MLP see one matrix of all rows; only attention looks at the layout. It equals the padded network up to
rounding.

Needs blocks of the default kind, batch first, weights frozen. Knows no token, tokenizer or name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Kept = Float[Tensor, "..."]
"""Keys and values of tokens: (B, P, 2, H, d) of a prefix, (1, n, T, 2, H, d) of a group's own beginnings."""


class Touch(Protocol):
    """What a method does inside the blocks, which are numbered from 0."""

    def enter(self, block: int, x: Float[Tensor, "B P W"]) -> Float[Tensor, "B P W"]:
        """What goes into a block in the place of `x`: of a text its prefix, of an image all tokens."""
        ...

    def beside(self, block: int, normed: Float[Tensor, "*N W"]) -> Float[Tensor, "*N W"] | None:
        """What is added beside the MLP, made of the rows that attention reads; None: nothing."""
        ...


@dataclass(frozen=True)
class Layer:
    """What one layer keeps, or may look back at."""

    shared: Kept
    own: list[Any]
    """One for each group: `Kept`, or None where a group has no beginning of its own."""


@dataclass(frozen=True)
class Layout:
    """How the rows of the matrix lie: the prefix first, then group after group."""

    prefix: tuple[int, int]
    groups: list[tuple[int, int, int]]

    @property
    def sizes(self) -> list[int]:
        return [self.prefix[0] * self.prefix[1], *(b * n * length for b, n, length in self.groups)]

    def ends(self, device: torch.device) -> Tensor:
        """Rows of last tokens, in the order of groups, contexts and names."""
        last, start = [], self.sizes[0]
        for size, (_, _, length) in zip(self.sizes[1:], self.groups, strict=True):
            last.append(torch.arange(start + length - 1, start + size, length))
            start += size
        return torch.cat(last).to(device)


class Blocks(nn.Module):
    """The causal network of an open_clip text tower: positions, blocks, final norm, projection."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.positions: Tensor = tower.positional_embedding
        self.layers = tower.transformer.resblocks
        self.final, self.projection = tower.ln_final, tower.text_projection

    def placed(self, x: Float[Tensor, "*N T W"], offset: int) -> Float[Tensor, "*N T W"]:
        """Vectors with the positions from `offset` on."""
        return x + self.positions[offset : offset + x.shape[-2]].to(x.dtype)

    def forward(
        self,
        prefix: Float[Tensor, "B P W"],
        own: Sequence[Float[Tensor, "B n L W"]],
        past: list[Layer] | None = None,
        *,
        recompute: bool = False,
        touch: Touch | None = None,
    ) -> tuple[Float[Tensor, "B N D"], list[Kept]]:
        """Embeddings at the last token of every continuation, groups in order; and what every layer keeps of
        the prefix."""
        layout, rows = _laid_out(prefix, own)
        return self.finish(rows, layout, 0, past, recompute=recompute, touch=touch)

    def finish(
        self,
        rows: Float[Tensor, "R W"],
        layout: Layout,
        first: int,
        past: list[Layer] | None = None,
        *,
        recompute: bool = False,
        touch: Touch | None = None,
    ) -> tuple[Float[Tensor, "B N D"], list[Kept]]:
        """The same from the rows that go into block `first`; `past` has an entry for each block left."""
        if recompute:
            again: Any = checkpoint(self._ends, rows, layout, first, past, touch, use_reentrant=False)
            ends, *shared = again
        else:
            ends, *shared = self._ends(rows, layout, first, past, touch)
        return ends, shared

    def _ends(
        self, rows: Tensor, layout: Layout, first: int, past: list[Layer] | None, touch: Touch | None
    ) -> tuple[Tensor, ...]:
        shared = []
        for i in range(first, len(self.layers)):
            last, seen = i == len(self.layers) - 1, past[i - first] if past else None
            rows, kept = _through(self.layers[i], rows, layout, seen, last=last, touch=touch, number=i)
            shared.append(kept.shared)
        rows = self.final(rows)
        if isinstance(self.projection, nn.Linear):
            rows = self.projection(rows)
        elif self.projection is not None:
            rows = rows @ self.projection
        parts = rows.split([b * n for b, n, _ in layout.groups])
        ends = [part.unflatten(0, shape[:2]) for part, shape in zip(parts, layout.groups, strict=True)]
        return torch.cat(ends, 1), *shared

    def begin(
        self, prefix: Float[Tensor, "B P W"], own: Sequence[Float[Tensor, "B n L W"]], stop: int
    ) -> tuple[Float[Tensor, "R W"], Layout]:
        """The rows that go into block `stop`, untouched."""
        layout, rows = _laid_out(prefix, own)
        for block in self.layers[:stop]:
            rows, _ = _through(block, rows, layout, None, last=False)
        return rows, layout

    def keys_and_values(
        self, prefix: Float[Tensor, "B P W"], own: Sequence[Float[Tensor, "B n L W"]]
    ) -> list[Layer]:
        """What every layer keeps of a prefix and of continuations that are beginnings themselves."""
        layout, rows = _laid_out(prefix, own)
        layers = []
        for block in self.layers:
            rows, kept = _through(block, rows, layout, None, last=False)
            layers.append(kept)
        return layers


def _laid_out(prefix: Tensor, own: Sequence[Tensor]) -> tuple[Layout, Float[Tensor, "R W"]]:
    groups: Any = [tuple(group.shape[:3]) for group in own]
    layout = Layout((prefix.shape[0], prefix.shape[1]), groups)
    return layout, torch.cat([prefix.flatten(0, 1), *(group.flatten(0, 2) for group in own)])


def _through(
    block: Any,
    rows: Float[Tensor, "R W"],
    layout: Layout,
    past: Layer | None,
    *,
    last: bool,
    touch: Touch | None = None,
    number: int = 0,
) -> tuple[Float[Tensor, "R W"], Layer]:
    """One residual block; in the last one only rows of last tokens go on."""
    if touch is not None:
        rows = _entered(rows, layout, touch, number)
    normed, attn = block.ln_1(rows), block.attn
    weight, bias, width = attn.in_proj_weight, attn.in_proj_bias, rows.shape[1]
    asking = normed
    if last:
        ends = layout.ends(rows.device)
        rows, asking = rows[ends], normed[ends]
        queries = F.linear(asking, weight[:width], bias[:width])
        both = F.linear(normed, weight[width:], bias[width:])
    else:
        queries, both = F.linear(normed, weight, bias).split([width, 2 * width], 1)
    queries = queries.unflatten(1, (attn.num_heads, -1))
    both = both.unflatten(1, (2, attn.num_heads, -1))
    seen, kept = _attention(queries, both, layout, past, last=last)
    rows = rows + block.ls_1(attn.out_proj(seen.flatten(1)))
    return finished(block, rows, asking, touch, number), kept


def _entered(rows: Float[Tensor, "R W"], layout: Layout, touch: Touch, number: int) -> Float[Tensor, "R W"]:
    """The prefix as the method wants it."""
    size = layout.sizes[0]
    if not size:
        return rows
    prefix = rows[:size].unflatten(0, layout.prefix)
    entered = touch.enter(number, prefix)
    return rows if entered is prefix else torch.cat([entered.flatten(0, 1), rows[size:]])


def finished(
    block: Any,
    rows: Float[Tensor, "*N W"],
    normed: Float[Tensor, "*N W"],
    touch: Touch | None,
    number: int,
) -> Float[Tensor, "*N W"]:
    """The second half of a residual block: the MLP, and what a method adds beside it."""
    after = rows + block.ls_2(block.mlp(block.ln_2(rows)))
    added = None if touch is None else touch.beside(number, normed)
    return after if added is None else after + added


def _attention(
    queries: Float[Tensor, "Q H d"],
    both: Float[Tensor, "R 2 H d"],
    layout: Layout,
    past: Layer | None,
    *,
    last: bool,
) -> tuple[Float[Tensor, "Q H d"], Layer]:
    """Attention of prefix and groups, each over what it may see."""
    first, *parts = both.split(layout.sizes)
    shared = past.shared if past and not layout.prefix[1] else first.unflatten(0, layout.prefix)
    asked = [b * n for b, n, _ in layout.groups] if last else layout.sizes[1:]
    before = queries[: len(queries) - sum(asked)]
    seen, own = [], []
    if len(before):
        alone = before.unflatten(0, layout.prefix)
        seen.append(_look(alone, shared).flatten(0, 1))
    begun = past.own if past else [None] * len(parts)
    later = queries[len(before) :].split(asked)
    for asking, part, shape, beginning in zip(later, parts, layout.groups, begun, strict=True):
        keys = part.unflatten(0, shape)
        own.append(keys)
        seen.append(_look_back(asking.unflatten(0, (*shape[:2], -1)), keys, shared, beginning))
    return torch.cat(seen), Layer(shared, own)


def _look_back(asking: Tensor, keys: Tensor, shared: Tensor, beginning: Tensor | None) -> Tensor:
    """Continuations (B, n, Q) over the prefix of their context, their own beginning and themselves."""
    contexts, names = keys.shape[:2]
    visible = [shared[:, None].expand(contexts, names, -1, -1, -1, -1), keys]
    if beginning is not None:
        visible.insert(1, beginning.expand(contexts, -1, -1, -1, -1, -1))
    seen = _look(asking.flatten(0, 1), torch.cat(visible, 2).flatten(0, 1))
    return seen.flatten(0, 1)


def _look(asking: Float[Tensor, "N Q H d"], both: Float[Tensor, "N S 2 H d"]) -> Float[Tensor, "N Q H d"]:
    """Causal attention; the Q queries are the last of the S positions."""
    q, (k, v) = asking.transpose(1, 2), both.permute(2, 0, 3, 1, 4)
    few, many = q.shape[2], k.shape[2]
    mask = None if few == 1 else q.new_ones(few, many, dtype=torch.bool).tril(many - few)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def cut(sizes: Sequence[tuple[int, int]], limit: int) -> Iterator[list[tuple[int, int, int]]]:
    """Put `(count, rows each)` groups into blocks of at most `limit` rows (one name at least): lists of
    (group, start, stop)."""
    block, free = [], limit
    for i, (count, rows) in enumerate(sizes):
        start = 0
        while start < count:
            fits = free // rows or (0 if block else 1)
            if not fits:
                yield block
                block, free = [], limit
                continue
            stop = min(count, start + fits)
            block.append((i, start, stop))
            free, start = max(0, free - rows * (stop - start)), stop
    if block:
        yield block
