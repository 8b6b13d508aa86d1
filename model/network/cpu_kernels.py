"""CPU kernels that are faster than plain PyTorch (``python -m benchmarks kernels`` measures them).

- Linear layers on oneDNN. PyTorch sends float32 products to MKL, which is slower than oneDNN on
  some processors and uses weights in their stored layout. oneDNN reads a packed copy, which is made
  once for all steps.
- Top-k addressing of the memory, with a gradient for the chosen slots only.
- The norm of published R2Gen checkpoints, over PyTorch's LayerNorm kernel, with a gradient in few passes.
- Dropout masks from 16 random bits per element. They also repeat the training runs of 0.1 bit for
  bit.

oneDNN compiles a product for each number of rows, so its caches grow with the sizes of batches.
Importing this module limits them.

On other devices, under autocast and with oneDNN switched off
(``torch.backends.mkldnn.flags(enabled=False)``), the layers are plain ``nn.Linear``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.optim.optimizer import register_optimizer_step_post_hook

_GROUPS = 256  # groups of a row of scores; see top_slots
_TINY = 1e-30  # stands for the deviation of a constant row, whose gradient is 0
_SMALL_MEAN = 4  # deviations; for larger means the LayerNorm kernel rounds otherwise
_LEVELS = 1 << 16  # of the random numbers that decide a dropout mask
_FEW = 128  # up to this many tokens, one batched product for all heads is faster than one per head
Activation = Literal["none", "relu"]

# Private operators of torch.compile's CPU code; without them the layers are slower.
_HAS_ONEDNN = torch._C._has_mkldnn and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)
_PRODUCTS: ContextVar[torch.dtype | None] = ContextVar("products", default=None)
_CACHED_SHAPES = "256"  # 640 KiB each; a draft needs about 60. The defaults keep 1,024, a new shape costs 1 ms
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # of oneDNN; of PyTorch, which also keeps products
_steps = 0  # of all optimizers of this process: fused ones do not increase the versions of weights
_WIDEST_STEP = 48  # weights are packed for this number of rows: 16 studies of 3 beams

for _name in _CACHES:  # read at the first product; a value of the user has precedence
    os.environ.setdefault(_name, _CACHED_SHAPES)


def _count_step(*_: object) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count_step)


def weight_version_key(tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    """A key that changes when one of ``tensors`` is replaced, written to, or trained by an optimizer.

    Writes through ``.data``, and into tensors made in inference mode, do not change it.
    """
    return _steps, *((tensor.data_ptr(), _version(tensor)) for tensor in tensors)


@contextmanager
def matmul_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Compute the packed products of this context in ``dtype`` (bfloat16); None keeps the type of the input."""
    token = _PRODUCTS.set(dtype)
    try:
        yield
    finally:
        _PRODUCTS.reset(token)


def runs_on_onednn(left: Tensor, right: Tensor) -> bool:
    """Whether oneDNN can multiply these: both float32 or both bfloat16, on a CPU."""
    return left.dtype == right.dtype and _takes(left, right, left.dtype)


def _takes(left: Tensor, right: Tensor, dtype: torch.dtype) -> bool:
    return (
        _HAS_ONEDNN
        and left.device.type == right.device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and bool(torch.backends.mkldnn.enabled)
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none") -> Tensor:
    """``activation(x @ weight.T + bias)`` without a gradient: x (..., K), weight (N, K), any strides -> (..., N).

    Only for tensors that ``runs_on_onednn``.
    """
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
    return out


class _Product(torch.autograd.Function):
    """``F.linear`` with all three products of forward and backward pass on oneDNN."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None  # type: ignore[attr-defined]
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])  # (M, N)
        grad_x = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if ctx.needs_input_grad[1] else None
        grad_bias = rows.sum(0) if ctx.biased and ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` with its gradient, on oneDNN if possible: x (..., K), weight (N, K) -> (..., N)."""
    if torch.is_autocast_enabled("cpu") or x.numel() == 0 or not runs_on_onednn(x, weight):
        return F.linear(x, weight, bias)
    out: Tensor = _Product.apply(x, weight, bias)
    return out


def _without_gradient(x: Tensor, layer: nn.Linear) -> Tensor:
    """A layer's product in the type of ``x``, where oneDNN cannot compute it.

    It takes detached weights: up to version 2.10, autocast keeps the cast that it makes without a gradient and gives
    it to a later pass with one, in which the weights then get no gradient.
    """
    return F.linear(x, layer.weight.detach().to(x.dtype), layer.bias.detach().to(x.dtype))


class PackedLinearGroup:
    """Layers with one input, as one product of their packed weights if no gradient is needed.

    Weights are packed at first use and again when the layers' weights change
    (``weight_version_key``). After an untracked write, call ``train`` or ``eval``, which drop them.
    Weights made in inference mode have no version and are packed at every call. Copies and pickles
    of a module have no packed weights.
    """

    def __init__(self) -> None:
        # key, weight, bias, and the sources, kept so that their addresses are not reused
        self._packed: tuple[tuple[Any, ...], Tensor, Tensor, list[Tensor]] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()

    def clear(self) -> None:
        """Drop the packed weights."""
        self._packed = None

    def __call__(self, x: Tensor, layers: Sequence[nn.Linear], activation: Activation = "none") -> tuple[Tensor, ...]:
        """x (..., K) -> the output of each of ``layers``, (..., N1), (..., N2), …; every layer has a bias."""
        inner, outer = _dtypes(x)
        if torch.is_grad_enabled() or x.numel() == 0 or not _takes(x, layers[0].weight, inner):
            # one product per layer: copying the parts of a joint product costs what it saves
            if torch.is_grad_enabled():
                x = x.to(outer)  # as autocast does for each layer
                outs = [linear(x, layer.weight, layer.bias) for layer in layers]
            else:
                outs = [_without_gradient(x.to(inner), layer).to(outer) for layer in layers]
            return tuple(F.relu(out) if activation == "relu" else out for out in outs)
        weight, bias = self._weights(layers, inner)
        out = product(x.to(inner), weight, bias, activation).to(outer)
        return (out,) if len(layers) == 1 else torch.split(out, [layer.out_features for layer in layers], dim=-1)

    def freeze(self, layers: Sequence[nn.Linear], activation: Activation = "none") -> Callable[[Tensor], Tensor]:
        """A function for many calls without a gradient: x (..., K) -> (..., N1 + N2 + …).

        It keeps the current weights and context (autocast, ``matmul_dtype``).
        """
        first = layers[0].weight
        inner, outer = _dtypes(first)
        if not _takes(first, first, inner):
            whole = [torch.cat([getattr(layer, part).detach() for layer in layers]) for part in ("weight", "bias")]
            joined = [part.to(inner) for part in whole]

            def unpacked(x: Tensor) -> Tensor:
                out = F.linear(x.to(inner), *joined).to(outer)
                return F.relu(out) if activation == "relu" else out

            return unpacked
        weight, bias = self._weights(layers, inner)
        operator = torch.ops.mkldnn._linear_pointwise.default

        def packed(x: Tensor) -> Tensor:
            out: Tensor = operator(x.to(inner), weight, bias, activation, [], "")
            return out.to(outer)

        return packed

    def _weights(self, layers: Sequence[nn.Linear], inner: torch.dtype) -> tuple[Tensor, Tensor]:
        """Current packed weights and biases of the layers."""
        key = (inner, *weight_version_key(part for layer in layers for part in (layer.weight, layer.bias)))
        packed = self._packed
        if packed is None or packed[0] != key or layers[0].weight.is_inference():
            weights, biases = [layer.weight.detach() for layer in layers], [layer.bias.detach() for layer in layers]
            weight = torch.ops.mkldnn._reorder_linear_weight(torch.cat(weights).to(inner), _WIDEST_STEP)
            self._packed = packed = key, weight, torch.cat(biases).to(inner), weights + biases
        return packed[1], packed[2]


def _dtypes(x: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Types in which a packed product of ``x`` is computed and returned."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        return dtype, dtype
    return _PRODUCTS.get() or x.dtype, x.dtype


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class Linear(nn.Linear):
    """``nn.Linear`` on oneDNN, packed if no gradient is needed; same keys and initial weights."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self._packed = PackedLinearGroup()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return self.activated(x, "none")

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        """``forward`` and the activation, one operator if no gradient is needed."""
        return self._packed(x, [self], activation)[0]

    def freeze(self, activation: Activation = "none") -> Callable[[Tensor], Tensor]:
        """A fast call without a gradient, with the current weights."""
        return self._packed.freeze([self], activation)

    def train(self, mode: bool = True) -> Self:
        """Also drops packed weights."""
        self._packed.clear()
        return super().train(mode)


# --- memory --------------------------------------------------------------------------------------------------------


def top_slots(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, unsorted: scores (..., M) -> values and indices (..., k), as ``Tensor.topk``.

    Group j of a long row holds columns j, j + G, j + 2G, …. A group with one of the k largest
    values has a maximum that is among the k largest maxima, so only k groups need to be searched:
    two small selections instead of a large one.
    """
    size = scores.shape[-1]
    groups = max(_GROUPS, k)
    if size % groups or k * (size // groups) + groups >= size:
        return scores.topk(k, dim=-1, sorted=False)
    columns = torch.arange(0, size, groups, device=scores.device).unsqueeze(1)  # (M/G, 1), first of each slice
    maxima = scores.view(*scores.shape[:-1], -1, groups).amax(dim=-2)  # (..., G)
    candidates = (maxima.topk(k, dim=-1, sorted=False).indices.unsqueeze(-2) + columns).flatten(-2)  # (..., k*M/G)
    best, found = scores.gather(-1, candidates).topk(k, dim=-1, sorted=False)
    return best, candidates.gather(-1, found)


def read_slots(queries: Tensor, keys: Tensor, values: Tensor, k: int) -> Tensor:
    """Softmax-weighted sum of the values of the k slots with the largest scores.

    Queries (H, N, d_h), already scaled, keys and values (H, M, d_h) -> (H, N, d_h).
    """
    if torch.is_grad_enabled():
        read: Tensor = _Read.apply(queries, keys, values, k)
        return read
    return _read(queries, keys, values, k)[0]


class _Read(torch.autograd.Function):
    """``read_slots`` with a gradient for the chosen slots only.

    It stores k slots and weights per token instead of M scores; the backward pass uses one (M, N)
    table per head, which stays in cache. ``embedding_bag`` sums weighted rows without copying them.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, queries: Tensor, keys: Tensor, values: Tensor, k: int) -> Tensor:
        read, weights, chosen = _read(queries, keys, values, k)
        ctx.save_for_backward(queries, keys, values, weights, chosen)
        return read

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, weights, chosen = ctx.saved_tensors
        grad = grad.to(queries.dtype).contiguous()
        grad_keys, grad_values, grad_scores = [], [], torch.empty_like(weights)
        tokens = torch.arange(queries.shape[1], device=grad.device).unsqueeze(1)  # (N, 1)
        table = grad.new_zeros(keys.shape[1], queries.shape[1])  # (M, N), all zero between its uses
        for head, slots in enumerate(chosen):
            of_weights = _dot(grad[head], values[head]).gather(1, slots).float()  # (N, k)
            inner = (of_weights * weights[head]).sum(dim=-1, keepdim=True)
            grad_scores[head] = weights[head] * (of_weights - inner)
            cells = slots * queries.shape[1] + tokens
            table.put_(cells, weights[head].to(table.dtype))
            grad_values.append(_dot(grad[head].t(), table).t())
            table.put_(cells, grad_scores[head].to(table.dtype))
            grad_keys.append(_dot(queries[head].t(), table).t())
            table.put_(cells, table.new_zeros(cells.shape))
        return _weighted_rows(keys, chosen, grad_scores), torch.stack(grad_keys), torch.stack(grad_values), None


def _read(queries: Tensor, keys: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The sum (H, N, d_h), its weights (H, N, k) and slots (H, N, k)."""
    best, slots = zip(*(top_slots(scores, k) for scores in _scores(queries, keys)), strict=True)
    weights, chosen = torch.cat(best).float().softmax(dim=-1), torch.cat(slots)
    return _weighted_rows(values, chosen, weights), weights, chosen


def _scores(queries: Tensor, keys: Tensor) -> Iterator[Tensor]:
    """Scores of all slots: (1, N, M) per head, which stays in cache, or (H, N, M) for few tokens."""
    if queries.shape[1] <= _FEW or not runs_on_onednn(queries, keys):
        yield queries @ keys.transpose(1, 2)
    else:
        for query, key in zip(queries, keys, strict=True):
            yield product(query, key).unsqueeze(0)


def _weighted_rows(rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Sum of chosen rows by weight: rows (H, M, d), chosen and weights (H, N, k) -> (H, N, d)."""
    heads, slots, width = rows.shape
    first = torch.arange(heads, device=rows.device)[:, None, None] * slots
    bags = (chosen + first).flatten(0, 1)
    summed = F.embedding_bag(
        bags, rows.reshape(-1, width), per_sample_weights=weights.flatten(0, 1).to(rows.dtype), mode="sum"
    )
    return summed.view(heads, -1, width)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right.T``, on oneDNN if possible."""
    return product(left, right) if runs_on_onednn(left, right) else left @ right.t()


# --- dropout -------------------------------------------------------------------------------------------------------


class Dropout(nn.Dropout):
    """``nn.Dropout``. On a CPU it draws 16 random bits per element, where PyTorch draws one number per element.

    The dropped share is rounded to 1/65,536. ``torch.manual_seed`` decides the mask.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share ``p`` of the elements and scale the others by 1 / (1 - p); the identity in eval mode."""
        if not self.training or self.p == 0.0:
            return x
        dropped = round(self.p * _LEVELS)
        if x.device.type != "cpu" or dropped == _LEVELS:
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _LEVELS // 2
        return (x * kept) * (_LEVELS / (_LEVELS - dropped))


# --- norm ----------------------------------------------------------------------------------------------------------


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``weight * (x - mean) / (std + eps) + bias`` with the unbiased std of a row: x (..., d) float32 -> (..., d)."""
    if torch.is_grad_enabled():
        out: Tensor = _Normalise.apply(x, weight, bias, eps)
        return out
    fused = _fused_norm(x, eps)
    normed = _normalised_near_constant(x, eps)[0] if fused is None else fused[0]
    return normed.mul_(weight).add_(bias)


class _Normalise(torch.autograd.Function):
    """``normalise`` with a gradient in few passes over the rows."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        normed, deviation = _normalised(x, eps)
        ctx.save_for_backward(normed, deviation, weight)
        ctx.eps = eps  # type: ignore[attr-defined]
        return torch.addcmul(bias, normed, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normed, deviation, weight = ctx.saved_tensors
        width = weight.shape[0]
        product = grad * normed
        through_deviation = (product @ weight).unsqueeze(-1) / ((width - 1) * deviation.clamp_min(_TINY))
        through_mean = (grad @ weight).unsqueeze(-1) / width
        grad_x = (grad * weight).sub_(through_mean).div_(deviation + ctx.eps)
        grad_x.addcmul_(normed, through_deviation, value=-1)
        return grad_x, product.flatten(0, -2).sum(0), grad.flatten(0, -2).sum(0), None


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x - mean) / (std + eps), (..., d), and the unbiased std of each row, (..., 1)."""
    fused = _fused_norm(x, eps)
    if fused is None:
        return _normalised_near_constant(x, eps)
    normed, inverse = fused
    return normed, inverse.reciprocal_().mul_(_std_ratio(x.shape[-1]))


def _fused_norm(x: Tensor, eps: float) -> tuple[Tensor, Tensor] | None:
    """(x - mean) / (std + eps) by PyTorch's LayerNorm kernel, and the inverse of the biased std.

    None where a mean is so large that the kernel rounds otherwise; and on other devices, where that
    comparison would wait for the device.
    """
    if x.device.type != "cpu":
        return None
    normed, mean, inverse = torch.native_layer_norm(x, (x.shape[-1],), None, None, _TINY)
    if not torch.linalg.vector_norm(mean * inverse, float("inf")).item() < _SMALL_MEAN:
        return None
    # exchange the biased deviation for std + eps
    return normed.div_((inverse * eps).add_(_std_ratio(x.shape[-1]))), inverse


def _std_ratio(width: int) -> float:
    """Ratio of the unbiased to the biased deviation."""
    return math.sqrt(width / (width - 1))


def _normalised_near_constant(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``_normalised`` for rows whose mean is large against their deviation.

    The rounding error of the mean is removed from the deviation (Chan et al. 1983, "Algorithms for
    computing the sample variance", equation 1.7).
    """
    width = x.shape[-1]
    centred = x - x.mean(dim=-1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    rounded = centred.sum(dim=-1, keepdim=True).square_().div_(width)
    deviation = length.square_().sub_(rounded).clamp_min_(0.0).div_(width - 1).sqrt_()
    return centred.div_(deviation + eps), deviation
