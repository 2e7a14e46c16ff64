"""Attention between samples and a prompt they share, and the maximum over its tokens: both passes, by hand.

For a sample x, the prompt S (P, D) and H heads, `closed_form` gives the row x' of Attn([x; S]) and the
maximum over all rows [x'; S'], both before the bias of the output projection. S is the same for every sample
of a batch, so its queries, keys and values are computed once a step: it rides along as P more rows of the
batch. What is left per sample has a closed form. Write, per head h, U[b,h] = W_o^h v_x^h for a sample's
values pushed through the output projection and V[k,h] = W_o^h v_k^h for the prompt's, l for scaled scores and
w = softmax over prompt keys alone. Then

    C[j,h]   = sum_k w[h,j,k] V[k,h]                               prompt row j, were there no sample
    g[b,j,h] = sigmoid(l[b,h,j,x] - logsumexp_k l[h,j,k])          what row j gives to x among [x; S]
    S'[b,j]  = sum_h (1 - g[b,j,h]) C[j,h] + g[b,j,h] U[b,h]
    x'[b]    = sum_h a[b,x,h] U[b,h] + sum_k a[b,k,h] V[k,h]       a = softmax over the keys [x; S]

which is 4 D^2 multiplications a sample for U and the projections of x, plus O(P H D).

The backward pass is written out instead of recorded. Of the tokens it needs the winners alone, one number per
(sample, feature) and not per token; samples and prompt share every product; and nothing is computed for
samples that need no gradient, which is the case in training.

All tensors have a leading axis G of separate problems, so that several models can be trained as one. Layouts:
the N = B + P rows are samples, then prompt; (GH, ., .) holds heads of all problems; token 0 is x, 1 ... P the
prompt.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

#: On a CPU, tokens are built for this many numbers at a time, and pooled while they are in its cache.
TOKEN_BLOCK = 1 << 20


def closed_form(
    x: Float[Tensor, "G B D"],
    prompt: Float[Tensor, "G P D"],
    in_weight: Float[Tensor, "G 3*D D"],
    in_bias: Float[Tensor, "G 3*D"],
    out_weight: Float[Tensor, "G D D"],
    heads: int,
    attend: str,
) -> tuple[Float[Tensor, "G B D"], Float[Tensor, "G B D"]]:
    """x' and the maximum over [x'; S'], without the bias of the output projection.

    Under autocast, products and tokens are in its type; scores and softmax are float32 or wider.

    Args:
        attend: what x looks at: "all" is [x; S], "prompt" is S alone. Prompt rows always see x.
    """
    device = x.device.type
    arithmetic = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        attended, pooled, *_ = _ClosedForm.apply(
            x, prompt, in_weight, in_bias, out_weight, heads, attend, arithmetic
        )
    return attended, pooled


class _Weights(NamedTuple):
    """Who gives how much to whom; float32 or wider."""

    of_sample: Float[Tensor, "GH P+1 B"]  # a: what x gives to itself and to the prompt
    to_sample: Float[Tensor, "GH P B"]  # g: what a prompt row gives to x
    of_prompt: Float[Tensor, "GH P P"]  # w: what the prompt row of a column gives to that of a row


class _ClosedForm(torch.autograd.Function):
    """The two passes. What the second reads is an output of the first: function transforms ask for that."""

    @staticmethod
    def forward(
        x: Tensor,
        prompt: Tensor,
        in_weight: Tensor,
        in_bias: Tensor,
        out_weight: Tensor,
        heads: int,
        attend: str,
        arithmetic: torch.dtype,
    ) -> tuple[Tensor, ...]:
        """Arguments of `closed_form`, and the type of its products."""
        samples, w_in = x.shape[1], in_weight.to(arithmetic).view_as(in_weight)  # never the input itself
        rows = torch.cat([x, prompt], dim=1).to(arithmetic)
        qkv = torch.baddbmm(in_bias[:, None].to(arithmetic), rows, w_in.mT)
        qkv = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)
        w_o = out_weight.to(arithmetic).mT.reshape(qkv.shape[1], -1, x.shape[2])  # (GH, D/H, D)
        u = torch.bmm(qkv[2], w_o)  # (GH, N, D): U of the samples, V of the prompt
        weights = _weights(qkv[0], qkv[1], samples, attend)
        v = u[:, samples:].contiguous()
        c = _tokens_first(torch.bmm(weights.of_prompt.mT.to(arithmetic), v), heads).contiguous()
        on_prompt = _heads_flat(weights.of_sample[:, 1:].to(arithmetic), heads)
        first = torch.bmm(on_prompt.mT, _heads_flat(v, heads))
        gates = torch.cat([weights.of_sample[:, :1], weights.to_sample], dim=1).to(arithmetic)
        gates = gates.unflatten(0, (-1, heads)).permute(0, 3, 2, 1).contiguous()
        u = _tokens_first(u[:, :samples], heads).contiguous()
        attended, pooled, winner = _max_over_tokens(gates, u, first, c)
        return attended, pooled, winner, rows, w_in, qkv, w_o, u, v, c, gates, *weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[2:])
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.heads = inputs[5]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        """K models are K times G problems."""
        problems = [
            (x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
            for x, dim in zip(inputs[:5], in_dims, strict=False)
        ]
        attended, pooled, *rest = _ClosedForm.apply(*problems, *inputs[5:])
        models = (info.batch_size, -1)
        return (attended.unflatten(0, models), pooled.unflatten(0, models), *rest), (
            0,
            0,
            *[None] * len(rest),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_attended: Tensor | None, d_pooled: Tensor | None, *_: None) -> tuple[Any, ...]:
        winner, rows, w_in, qkv, w_o, u, v, c, gates, *rest = ctx.saved_tensors
        weights, heads, samples = _Weights(*rest), ctx.heads, u.shape[1]
        d_gates, d_u, d_first, d_c = _max_backward(gates, u, c, winner, d_attended, d_pooled)
        d_gates, d_c = d_gates.permute(0, 3, 2, 1).flatten(0, 1), _heads_first(d_c)

        d_through = v.new_empty(len(v), rows.shape[1], v.shape[2])  # of U and V, as one
        d_through[:, :samples] = _heads_first(d_u)
        d_through[:, samples:] = _from_values(weights, d_first, d_c, heads)
        d_weights = _Weights(
            torch.cat([d_gates[:, :1], _heads_apart(_heads_flat(v, heads) @ d_first.mT, heads)], dim=1),
            d_gates[:, 1:],
            v @ d_c.mT,
        )
        d_qkv = torch.empty_like(qkv)
        _weights_backward(qkv, weights, d_weights, out=d_qkv)
        torch.bmm(d_through, w_o.mT, out=d_qkv[2])
        d_w_o = _heads_flat(torch.bmm(qkv[2].mT, d_through), heads).mT

        d_qkv = d_qkv.unflatten(1, (-1, heads)).permute(1, 3, 0, 2, 4).flatten(2)  # (G, N, 3 D)
        d_x = torch.bmm(d_qkv[:, :samples], w_in) if ctx.needs_input_grad[0] else None
        d_prompt = torch.bmm(d_qkv[:, samples:], w_in)
        d_bias = d_qkv.sum(1, dtype=weights.of_sample.dtype)
        return d_x, d_prompt, torch.bmm(d_qkv.mT, rows), d_bias, d_w_o, None, None, None


def _weights(q: Float[Tensor, "GH N d"], k: Float[Tensor, "GH N d"], samples: int, attend: str) -> _Weights:
    exact, scale = torch.promote_types(q.dtype, torch.float32), q.shape[2] ** -0.5
    on_prompt = torch.bmm(k[:, samples:], q.mT).to(exact) * scale  # (GH, P, N)
    on_sample = torch.bmm(q[:, samples:], k[:, :samples].mT).to(exact) * scale  # (GH, P, B)
    on_prompt, of_prompt = on_prompt[:, :, :samples], on_prompt[:, :, samples:]
    if attend == "all":
        on_itself = (q * k)[:, :samples].sum(2, dtype=exact)[:, None] * scale
    else:
        on_itself = torch.full_like(on_prompt[:, :1], -math.inf)
    return _Weights(
        torch.cat([on_itself, on_prompt], dim=1).softmax(1),
        torch.sigmoid(on_sample - of_prompt.logsumexp(1)[:, :, None]),
        of_prompt.softmax(1),
    )


def _weights_backward(
    qkv: Float[Tensor, "3 GH N d"], weights: _Weights, given: _Weights, out: Float[Tensor, "3 GH N d"]
) -> None:
    """Write the gradients of queries and keys into `out`, from those of the weights."""
    (q, k, _), (d_q, d_k, _), samples = qkv, out, weights.to_sample.shape[2]
    scale = q.shape[2] ** -0.5
    d_on_sample = given.to_sample * weights.to_sample * (1 - weights.to_sample)
    d_of_prompt = _softmax_backward(weights.of_prompt, given.of_prompt)
    d_of_prompt -= weights.of_prompt * d_on_sample.sum(2)[:, None]
    d_of_sample = _softmax_backward(weights.of_sample, given.of_sample)

    d_on_prompt = (torch.cat([d_of_sample[:, 1:], d_of_prompt], dim=2) * scale).to(q.dtype)  # (GH, P, N)
    d_on_sample = (d_on_sample * scale).to(q.dtype)
    d_on_itself = (d_of_sample[:, 0, :, None] * scale).to(q.dtype)  # (GH, B, 1)

    torch.bmm(d_on_prompt.mT, k[:, samples:], out=d_q)
    d_q[:, :samples].addcmul_(d_on_itself, k[:, :samples])
    d_q[:, samples:] += torch.bmm(d_on_sample, k[:, :samples])
    d_k[:, :samples] = torch.bmm(d_on_sample.mT, q[:, samples:])
    d_k[:, :samples].addcmul_(d_on_itself, q[:, :samples])
    d_k[:, samples:] = torch.bmm(d_on_prompt, q)


def _softmax_backward(weights: Float[Tensor, "GH K R"], given: Float[Tensor, "GH K R"]) -> Tensor:
    """Gradient of the scores, of a softmax over the middle axis."""
    return weights * (given - (weights * given).sum(1, keepdim=True))


def _from_values(
    weights: _Weights, d_first: Float[Tensor, "G B D"], d_c: Float[Tensor, "GH P D"], heads: int
) -> Float[Tensor, "GH P D"]:
    """The gradient of V: by way of x', and of the prompt rows."""
    on_prompt = _heads_flat(weights.of_sample[:, 1:].to(d_first.dtype), heads)  # (G, H P, B)
    by_sample = _heads_apart(torch.bmm(on_prompt, d_first), heads)
    return torch.baddbmm(by_sample, weights.of_prompt.to(d_c.dtype), d_c)


def _max_over_tokens(
    gates: Float[Tensor, "G B P+1 H"],
    u: Float[Tensor, "G B H D"],
    first: Float[Tensor, "G B D"],
    c: Float[Tensor, "G P H D"],
) -> tuple[Float[Tensor, "G B D"], Float[Tensor, "G B D"], Int[Tensor, "G B D"]]:
    """x', the maximum over tokens, and which token it is.

    token[b,0] = first[b] + sum_h gates[b,0,h] u[b,h]
    token[b,j] = sum_h (1 - gates[b,j,h]) c[j,h] + gates[b,j,h] u[b,h]        j = 1 ... P
    """
    attended, pooled = torch.empty_like(first), torch.empty_like(first)
    winner, rest = torch.empty_like(first, dtype=torch.int64), 1 - gates[:, :, 1:].transpose(1, 2)
    for block, tokens, rows in _blocks(gates, u):
        tokens[:, :, 0] = first[:, block]
        torch.bmm(rest[:, :, block].flatten(0, 1), c.flatten(0, 1), out=rows.flatten(0, 1))
        tokens[:, :, 1:] = rows.transpose(1, 2)
        tokens.flatten(0, 1).baddbmm_(gates[:, block].flatten(0, 1), u[:, block].flatten(0, 1))
        attended[:, block] = tokens[:, :, 0]
        pooled[:, block], winner[:, block] = _first_max(tokens)
    return attended, pooled, winner


def _max_backward(
    gates: Float[Tensor, "G B P+1 H"],
    u: Float[Tensor, "G B H D"],
    c: Float[Tensor, "G P H D"],
    winner: Int[Tensor, "G B D"],
    d_attended: Float[Tensor, "G B D"] | None,
    d_pooled: Float[Tensor, "G B D"] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `_max_over_tokens` for its inputs. That of a token is zero where it did not win."""
    d_first, d_c = torch.empty_like(u[:, :, 0]), torch.zeros_like(c)
    d_gates, d_u = torch.empty_like(gates), torch.empty_like(u)
    rest = 1 - gates[:, :, 1:].transpose(1, 2)
    for block, d_tokens, _ in _blocks(gates, u):
        d_tokens.zero_()
        if d_pooled is not None:
            d_tokens.scatter_(2, winner[:, block, None], d_pooled[:, block, None])
        if d_attended is not None:
            d_tokens[:, :, 0] += d_attended[:, block]
        d_rows, d_first[:, block] = d_tokens[:, :, 1:].transpose(1, 2), d_tokens[:, :, 0]
        d_u[:, block] = gates[:, block].mT @ d_tokens
        d_gates[:, block] = d_tokens @ u[:, block].mT
        d_gates[:, block, 1:] -= (d_rows @ c.mT).transpose(1, 2)
        d_c += rest[:, :, block].mT @ d_rows
    return d_gates, d_u, d_first, d_c


def _blocks(
    gates: Float[Tensor, "G B P+1 H"], u: Float[Tensor, "G B H D"]
) -> Iterator[tuple[slice, Float[Tensor, "G b P+1 D"], Float[Tensor, "G P b D"]]]:
    """Parts of the batch, with room for their tokens and for prompt rows; on an accelerator all of it at
    once.

    It is the same memory for every part: asking the system for new pages costs more than the arithmetic.
    """
    (problems, samples, tokens, _), dim = gates.shape, u.shape[3]
    step = max(1, TOKEN_BLOCK // (problems * tokens * dim)) if u.device.type == "cpu" else samples
    sizes = problems, min(step, samples), tokens
    room, rows = u.new_empty(math.prod(sizes) * dim), u.new_empty(math.prod(sizes) * dim)
    for start in range(0, samples, step):
        size = min(step, samples - start)
        shape = (problems, size, tokens, dim), (problems, tokens - 1, size, dim)
        yield (
            slice(start, start + size),
            room[: math.prod(shape[0])].view(shape[0]),
            rows[: math.prod(shape[1])].view(shape[1]),
        )


def _first_max(tokens: Float[Tensor, "*G T D"]) -> tuple[Float[Tensor, "*G D"], Int[Tensor, "*G D"]]:
    """`tokens.max(dim=-2)` by way of max pooling, whose kernel is vectorised over the last axis (3 times
    faster on CPU)."""
    image = tokens.flatten(0, -3)[:, :, None].permute(0, 3, 1, 2)  # (B, D, T, 1), channels last: no copy
    values, indices = F.max_pool2d(image, (tokens.shape[-2], 1), return_indices=True)
    return values.flatten(1).view(*tokens.shape[:-2], -1), indices.flatten(1).view(*tokens.shape[:-2], -1)


def _heads_flat(x: Float[Tensor, "GH R D"], heads: int) -> Float[Tensor, "G H*R D"]:
    return x.unflatten(0, (-1, heads)).flatten(1, 2)


def _heads_apart(x: Float[Tensor, "G H*R D"], heads: int) -> Float[Tensor, "GH R D"]:
    return x.unflatten(1, (heads, -1)).flatten(0, 1)


def _tokens_first(x: Float[Tensor, "GH R D"], heads: int) -> Float[Tensor, "G R H D"]:
    return x.unflatten(0, (-1, heads)).transpose(1, 2)


def _heads_first(x: Float[Tensor, "G R H D"]) -> Float[Tensor, "GH R D"]:
    return x.transpose(1, 2).flatten(0, 1)
