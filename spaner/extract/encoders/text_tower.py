"""A frozen text tower with gradients: class names with room for learned vectors -> embeddings.

    tower.prompted(names, length=4, position="end")(context)       (B, M, W) -> (B, C, D)

reads `[start][v1 ... vM][name].[end]` for every name, or the name first ("front") or between two halves
("middle"), as CoOp does (arXiv:2109.01134). Three savings, all exact, where no token sees what follows it:
nothing behind the end token is computed; the prefix that all names share is computed once per context; names
that stand in front of everything learned keep their keys and values for ever. All rows of a layer, prefix and
names, go through one product; the last layer keeps end tokens alone. Other towers run whole (`Padded`), by
their own code, with the learned vectors put in place of token embeddings.

Trains no weight of the tower, which must be frozen. Knows no method and no cache.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spaner.errors import EncoderError
from spaner.extract.encoders.packed import Blocks, Kept, Layer, Layout, Touch, cut

POSITIONS = ("end", "middle", "front")


@dataclass(frozen=True)
class Marks:
    """Token ids that are no words: `filler` holds the place of a learned vector."""

    start: int
    end: int
    padding: int
    filler: int


class PromptTower(nn.Module):
    """A text tower that can be prompted.

    Args:
        model: holds the weights, frozen; `encode` is its own way from token ids to embeddings.
        embedding: the module of `model` that turns ids into vectors.
        words: a text's token ids without marks.
        window: the longest sequence of tokens.
        blocks: the same network as causal blocks, where it is one.
        sha256: of the encoder's weights: who trains from a cache compares it.
    """

    def __init__(
        self,
        model: nn.Module,
        encode: Callable[[Int[Tensor, "C T"]], Float[Tensor, "C D"]],
        embedding: nn.Module,
        words: Callable[[str], list[int]],
        marks: Marks,
        window: int,
        blocks: Blocks | None,
        sha256: str,
    ) -> None:
        super().__init__()
        self.model, self.encode, self.words, self.marks = model, encode, words, marks
        self.embedding, self.blocks, self.window, self.sha256 = embedding, blocks, window, sha256

    @property
    def device(self) -> torch.device:
        return next(self.embedding.parameters()).device

    @property
    def width(self) -> int:
        """Of a token's vector."""
        return next(self.embedding.parameters()).shape[1]

    @property
    def depth(self) -> int:
        """How many blocks a method can reach into; 0: the tower is not causal or its blocks are not plain."""
        return 0 if self.blocks is None else len(self.blocks.layers)

    @torch.no_grad()
    def embed(self, ids: Sequence[int] | Sequence[Sequence[int]]) -> Float[Tensor, "*N T W"]:
        """Vectors of tokens, without positions."""
        return self.embedding(torch.tensor(ids, dtype=torch.long, device=self.device))

    def context_of(self, text: str) -> Float[Tensor, "M W"]:
        """The start that words give to a context; the space behind them belongs to it where spaces count."""
        return self.embed(self.words(f"{text} ")).clone()

    def prompted(
        self,
        names: Sequence[str],
        length: int,
        position: str = "end",
        *,
        block_rows: int | None = None,
        recompute: bool = False,
        cut: bool = False,
    ) -> "Packed | Padded":
        """Names with room for `length` vectors.

        Args:
            position: where the name stands: at the end (behind the vectors), in their middle, or in front.
            block_rows: at most as many token rows at once; None: all.
            recompute: keep no activations of a block for the gradient, compute them again.
            cut: leave out what does not fit the window, from a name's end; else it is refused.

        Raises:
            EncoderError: another position, or a name that does not fit the window.
        """
        if position not in POSITIONS:
            raise EncoderError(f"position is {position!r}; expected {', '.join(POSITIONS)}; use position=end")
        texts = [self.pieces(name, length, cut=cut) for name in names]
        if self.blocks is None:
            return Padded(self, texts, length, position)
        return Packed(self, self.blocks, texts, length, position, block_rows, recompute=recompute)

    def pieces(self, name: str, length: int, *, cut: bool = False) -> tuple[list[int], list[int]]:
        """The name's tokens, and those behind it: the full stop and the end mark."""
        whole, here = [*self.words(f"{name}."), self.marks.end], len(self.words(name))
        if cut:
            over = max(0, 1 + length + len(whole) - self.window)
            whole, here = whole[: here - over] + whole[here:], here - over
        if (total := 1 + length + len(whole)) > self.window:
            raise EncoderError(
                f"{name!r} with {length} context vectors takes {total} tokens; the text tower reads "
                f"{self.window}; use at most {self.window - 1 - len(whole)} vectors, or shorten the name"
            )
        return whole[:here], whole[here:]


class Padded:
    """Every name at the full window through the tower's own code, whatever it is."""

    def __init__(
        self, tower: PromptTower, texts: list[tuple[list[int], list[int]]], length: int, position: str
    ) -> None:
        self.tower, marks = tower, tower.marks
        before = {"end": length, "middle": length // 2, "front": 0}[position]
        rows, places = [], []
        for name, tail in texts:
            fill = [marks.filler] * before, [marks.filler] * (length - before)
            row = [marks.start, *fill[0], *name, *fill[1], *tail]
            rows.append(row + [marks.padding] * (tower.window - len(row)))
            later = range(1 + before + len(name), 1 + length + len(name))
            places.append([*range(1, 1 + before), *later])
        self.ids = torch.tensor(rows, device=tower.device)
        self.places = torch.tensor(places, device=tower.device).view(len(rows), length)

    def __call__(self, context: Float[Tensor, "B M W"], *, per_class: bool = False) -> Float[Tensor, "B C D"]:
        """Embeddings, not normalised, of every name in every context; with `per_class`, context i belongs to
        name i, and B of the result is 1."""
        contexts, (names, length) = 1 if per_class else len(context), self.places.shape
        vectors = self.tower.embed(self.ids.tolist()).expand(contexts, -1, -1, -1)
        learned = context[None] if per_class else context[:, None]
        where = self.places.expand(contexts, -1, -1)[..., None].expand(-1, -1, -1, vectors.shape[3])
        learned = learned.expand(contexts, names, length, -1)
        vectors = vectors.scatter(2, where, learned.to(vectors.dtype)).flatten(0, 1)
        hook = self.tower.embedding.register_forward_hook(lambda *_: vectors)
        try:
            rows = self.tower.encode(self.ids.repeat(contexts, 1))
        finally:
            hook.remove()
        return rows.unflatten(0, (contexts, names))


@dataclass(frozen=True)
class Group:
    """Names with equally many tokens: their places in the caller's list, and vectors without positions."""

    classes: tuple[int, ...]
    name: Float[Tensor, "n T W"]
    tail: Float[Tensor, "n S W"]
    past: list[Kept] | None = None
    """Keys and values of names that stand before everything learned, a pair per layer."""

    @property
    def rows(self) -> int:
        """Token rows of one name that depend on no other."""
        return self.tail.shape[1] + (0 if self.past else self.name.shape[1])

    def slice(self, start: int, stop: int) -> "Group":
        past = None if self.past is None else [kv[:, start:stop] for kv in self.past]
        return Group(self.classes[start:stop], self.name[start:stop], self.tail[start:stop], past)


class Packed:
    """Only the tokens that must be computed, all names in one product per layer."""

    def __init__(
        self,
        tower: PromptTower,
        blocks: Blocks,
        texts: list[tuple[list[int], list[int]]],
        length: int,
        position: str,
        block_rows: int | None,
        *,
        recompute: bool,
    ) -> None:
        self.blocks, self.length, self.block_rows, self.recompute = blocks, length, block_rows, recompute
        self.before = {"end": length, "middle": length // 2, "front": 0}[position]
        self.start = tower.embed([[tower.marks.start]])
        order = sorted(range(len(texts)), key=lambda i: tuple(map(len, texts[i])))
        alike = [tuple(g) for _, g in groupby(order, key=lambda i: tuple(map(len, texts[i])))]
        self.groups = [
            Group(g, tower.embed([texts[i][0] for i in g]), tower.embed([texts[i][1] for i in g]))
            for g in alike
        ]
        self.shared: list[Kept] | None = None
        if position == "front":
            self._keep_names()
        inverse = torch.tensor([i for g in self.groups for i in g.classes]).argsort()
        self.inverse = inverse.to(tower.device)

    @torch.no_grad()
    def _keep_names(self) -> None:
        """Start mark and names do not change: their keys and values, once."""
        own = [self.blocks.placed(g.name[None], 1) for g in self.groups]
        kept = self.blocks.keys_and_values(self.blocks.placed(self.start, 0), own)
        self.shared = [layer.shared for layer in kept]
        self.groups = [
            Group(g.classes, g.name, g.tail, [layer.own[i] for layer in kept])
            for i, g in enumerate(self.groups)
        ]

    def __call__(
        self, context: Float[Tensor, "B M W"], *, per_class: bool = False, touch: Touch | None = None
    ) -> Float[Tensor, "B C D"]:
        """Embeddings, not normalised, of every name in every context; with `per_class`, context i belongs to
        name i, and B of the result is 1. `touch` acts inside the blocks."""
        contexts, shared = 1 if per_class else len(context), self.shared
        prefix = self._prefix(context, contexts, per_class=per_class)
        rows = []
        for block in self._blocks(contexts, per_class=per_class):
            own = [self._own(g, context, contexts, per_class=per_class) for g in block]
            past = self._past(shared, block)
            ends, kept = self.blocks(prefix, own, past, recompute=self.recompute, touch=touch)
            rows.append(ends)
            if shared is None:  # the first block carried the prefix; the others look back at it
                prefix, shared = prefix[:, :0], kept
        return torch.cat(rows, 1)[:, self.inverse]

    @torch.no_grad()
    def begun(self, context: Float[Tensor, "1 M W"], block: int) -> "Begun":
        """Everything up to a block, once, for a context that is not learned."""
        own = [self._own(g, context, 1, per_class=False) for g in self.groups]
        rows, layout = self.blocks.begin(self._prefix(context, 1, per_class=False), own, block)
        return Begun(self, rows, layout, block)

    def _prefix(
        self, context: Float[Tensor, "B M W"], contexts: int, *, per_class: bool
    ) -> Float[Tensor, "B P W"]:
        """What all names share, with positions."""
        prefix = self.start.expand(contexts, -1, -1)
        if self.shared is not None:
            prefix = prefix[:, :0]
        elif not per_class:
            prefix = torch.cat([prefix, context[:, : self.before].to(prefix.dtype)], 1)
        return self.blocks.placed(prefix, 0)

    def _blocks(self, contexts: int, *, per_class: bool) -> Iterator[list[Group]]:
        """Groups, cut and put together so that a block has at most `block_rows` rows."""
        learned = self.length if per_class else self.length - self.before
        for pieces in self.pieces([contexts * (g.rows + learned) for g in self.groups]):
            yield [self.groups[i].slice(start, stop) for i, start, stop in pieces]

    def pieces(self, rows: list[int]) -> Iterator[list[tuple[int, int, int]]]:
        """Blocks of (group, start, stop), where a name of group i has `rows[i]` rows."""
        if self.block_rows is None:
            yield [(i, 0, len(g.classes)) for i, g in enumerate(self.groups)]
            return
        sizes = [(len(g.classes), each) for g, each in zip(self.groups, rows, strict=True)]
        yield from cut(sizes, self.block_rows)

    def _past(self, shared: list[Kept] | None, block: list[Group]) -> list[Layer] | None:
        if shared is None:
            return None
        own: Any = [[g.past[i] if g.past else None for g in block] for i in range(len(shared))]
        return [Layer(kv, groups) for kv, groups in zip(shared, own, strict=True)]

    def _own(
        self, group: Group, context: Float[Tensor, "B M W"], contexts: int, *, per_class: bool
    ) -> Float[Tensor, "B n L W"]:
        """What follows the shared prefix (and a kept name), with positions."""
        context = context.to(group.name.dtype)
        before, names = self.before, len(group.classes)
        learned = (
            context[list(group.classes)][None] if per_class else context[:, None].expand(-1, names, -1, -1)
        )
        parts = [
            learned[:, :, :before] if per_class else None,
            None if group.past else group.name.expand(contexts, -1, -1, -1),
            learned[:, :, before:],
            group.tail.expand(contexts, -1, -1, -1),
        ]
        offset = 1 + (0 if per_class else before) + (group.name.shape[1] if group.past else 0)
        return self.blocks.placed(torch.cat([part for part in parts if part is not None], 2), offset)


class Begun:
    """Names whose frozen lower blocks have been run: only the upper ones are left."""

    def __init__(self, prompted: Packed, rows: Float[Tensor, "R W"], layout: Layout, block: int) -> None:
        self.prompted, self.block = prompted, block
        prefix, *groups = rows.split(layout.sizes)
        names = [group.unflatten(0, shape[1:]) for group, shape in zip(groups, layout.groups, strict=True)]
        self.pieces: list[tuple[Tensor, Layout]] = []
        for piece in prompted.pieces([shape[2] for shape in layout.groups]):
            kept = [names[i][start:stop] for i, start, stop in piece]
            here = Layout(layout.prefix, [(1, each.shape[0], each.shape[1]) for each in kept])
            self.pieces.append((torch.cat([prefix, *(each.flatten(0, 1) for each in kept)]), here))
            prefix, layout = prefix[:0], Layout((1, 0), layout.groups)

    def __call__(self, touch: Touch | None = None) -> Float[Tensor, "C D"]:
        """Embeddings of all names, not normalised."""
        blocks, recompute = self.prompted.blocks, self.prompted.recompute
        shared, found = None, []
        for rows, layout in self.pieces:
            own: list[Any] = [None] * len(layout.groups)
            past = None if shared is None else [Layer(kept, own) for kept in shared]
            ends, kept = blocks.finish(rows, layout, self.block, past, recompute=recompute, touch=touch)
            shared = kept if shared is None else shared
            found.append(ends[0])
        return torch.cat(found)[self.prompted.inverse]
