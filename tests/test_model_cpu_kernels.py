"""Linear layers on oneDNN equal ``nn.Linear``; packed weights follow every change and are never copied."""

from __future__ import annotations

import copy
import ctypes
import io
import pickle
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import DecodingConfig
from model.decoding.generate import generate
from model.network import cpu_kernels
from model.network.cpu_kernels import Linear, PackedLinearGroup, matmul_dtype, runs_on_onednn
from tests.support.tiny import random_patches, tiny_model, tiny_tokenizer

needs_onednn = pytest.mark.skipif(
    not runs_on_onednn(torch.zeros(1), torch.zeros(1)), reason="this PyTorch has no oneDNN operators"
)


def pair(inputs: int = 7, outputs: int = 4, seed: int = 0) -> tuple[Linear, nn.Linear]:
    """Our layer and PyTorch's, initialised with the same seed."""
    torch.manual_seed(seed)
    layer = Linear(inputs, outputs)
    torch.manual_seed(seed)
    return layer, nn.Linear(inputs, outputs)


def exact(x: Tensor, layer: nn.Linear) -> Tensor:
    """In float64."""
    return F.linear(x.double(), layer.weight.double(), layer.bias.double())


def packed(layer: Linear) -> object:
    """The packed weights of a layer; None before they are packed."""
    return layer._packed._packed


def check(layer: Linear, x: Tensor) -> None:
    """Forward with and without packing, and all three gradients, against float64."""
    x = x.detach()
    with torch.no_grad():
        torch.testing.assert_close(layer(x).double(), exact(x, layer), atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x).double(), exact(x, layer), atol=1e-5, rtol=1e-5)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = layer(leaf)
    torch.testing.assert_close(out.double(), exact(x, layer), atol=1e-5, rtol=1e-5)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    gradients = torch.autograd.grad((out * direction).sum(), (leaf, layer.weight, layer.bias))
    inputs = tuple(value.detach().double().requires_grad_() for value in (x, layer.weight, layer.bias))
    expected = torch.autograd.grad((F.linear(*inputs) * direction.double()).sum(), inputs)
    torch.testing.assert_close([value.double() for value in gradients], list(expected), atol=1e-5, rtol=1e-5)


def test_linear_has_the_keys_and_initial_weights_of_nn_linear() -> None:
    layer, plain = pair()
    assert list(layer.state_dict()) == list(plain.state_dict()) == ["weight", "bias"]
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.bias, plain.bias)


@pytest.mark.parametrize(
    ("inputs", "outputs", "shape"),
    [
        *((7, 4, shape) for shape in [(7,), (0, 7), (1, 7), (5, 7), (130, 7), (2, 3, 7), (2, 2, 3, 7)]),
        *((i, o, (6, i)) for i, o in [(1, 1), (1, 5), (5, 1), (33, 65), (512, 760)]),
    ],
)
def test_linear_values_and_gradients_equal_pytorch(inputs: int, outputs: int, shape: tuple[int, ...]) -> None:
    check(pair(inputs, outputs)[0], torch.randn(shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::2],  # (6, 7) of (6, 14)
        lambda x: x[::2, :7],
        lambda x: x[:, :7].t().contiguous().t(),  # columns lie together
        lambda x: x[:1, :7].expand(5, 7),  # stride 0
        lambda x: x.view(3, 2, 14)[..., :7].transpose(0, 1),
        lambda x: x.flatten()[3:52].view(7, 7),  # not at the start of its memory
    ],
    ids=["columns", "rows", "transposed", "expanded", "batched", "offset"],
)
def test_strided_inputs_equal_pytorch(view: Callable[[Tensor], Tensor]) -> None:
    check(pair()[0], view(torch.randn(6, 14, generator=torch.Generator().manual_seed(1))))


def test_gradient_with_stride_zero_equals_pytorch() -> None:
    layer, plain = pair()
    x = torch.randn(5, 7, requires_grad=True)
    found = torch.autograd.grad(layer(x).sum(), (x, layer.weight, layer.bias))
    expected = torch.autograd.grad(plain(x).sum(), (x, plain.weight, plain.bias))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frozen", ["weight", "bias", "x"])
def test_frozen_tensors_get_no_gradient(frozen: str) -> None:
    layer, x = pair()[0], torch.randn(3, 7, requires_grad=True)
    leaves = {"weight": layer.weight, "bias": layer.bias, "x": x}
    leaves[frozen].requires_grad_(False)
    layer(x).sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is not None} == set(leaves) - {frozen}


@pytest.mark.parametrize("grad", [False, True])
def test_activated_applies_the_activation_to_the_product(grad: bool) -> None:
    layer, x = pair()[0], torch.randn(9, 7)
    with torch.set_grad_enabled(grad):
        out = layer.activated(x, "relu")
        plain = layer.activated(x, "none")
    expected = exact(x, layer)
    assert bool((expected < 0).any())
    torch.testing.assert_close(out.double(), expected.clamp(min=0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain.double(), expected, atol=1e-5, rtol=1e-5)


# --- packing ----------------------------------------------------------------------------------------------------------


def step(make: Callable[..., torch.optim.Optimizer], **options: bool) -> Callable[[Linear], None]:
    def take(layer: Linear) -> None:
        optimizer = make(layer.parameters(), lr=0.1, **options)
        with torch.enable_grad():
            layer(torch.ones(2, 7)).square().sum().backward()
        optimizer.step()

    return take


def scale_in_inference_mode(layer: Linear) -> None:
    with torch.inference_mode():
        layer.weight.mul_(-1)


def other_state() -> dict[str, Tensor]:
    return pair(seed=5)[1].state_dict()


CHANGES: dict[str, Callable[[Linear], object]] = {
    "add to the weight": lambda layer: layer.weight.add_(0.5),
    "add to the bias": lambda layer: layer.bias.add_(0.5),
    "scale in inference mode": scale_in_inference_mode,
    "load": lambda layer: layer.load_state_dict(other_state()),
    "assign": lambda layer: layer.load_state_dict(other_state(), assign=True),
    "replace the weight": lambda layer: setattr(layer, "weight", nn.Parameter(other_state()["weight"])),
    "replace the bias": lambda layer: setattr(layer, "bias", nn.Parameter(other_state()["bias"])),
    "initialise": lambda layer: nn.init.xavier_uniform_(layer.weight),
    **{
        f"{kind} {make.__name__}": step(make, **{kind: True})
        for make in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
        for kind in ("fused", "foreach")
    },
}


@needs_onednn
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_packed_weights_follow_every_change(change: Callable[[Linear], object]) -> None:
    layer, x = pair()[0], torch.randn(3, 7)
    with torch.no_grad():
        before = layer(x)
        assert packed(layer) is not None
        change(layer)
        after = layer(x)
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after.double(), exact(x, layer), atol=1e-5, rtol=1e-5)


def test_weights_of_inference_mode_are_packed_at_every_call() -> None:
    with torch.inference_mode():
        layer, x = Linear(7, 4), torch.randn(3, 7)
        layer(x)
        layer.weight.mul_(-2)
        torch.testing.assert_close(layer(x).double(), exact(x, layer), atol=1e-5, rtol=1e-5)


def test_packed_weights_follow_a_change_of_type() -> None:
    layer, x = pair()[0], torch.randn(3, 7)
    with torch.no_grad():
        expected = exact(x, layer)
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-5), (torch.bfloat16, 5e-2),
                                 (torch.float32, 2e-2)):  # fmt: skip
            out = layer.to(dtype)(x.to(dtype))
            assert out.dtype == dtype
            torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


@needs_onednn
def test_weights_are_packed_once_and_dropped_by_train() -> None:
    layer, x = pair()[0], torch.randn(3, 7)
    layer(x)
    assert packed(layer) is None
    with torch.no_grad():
        layer(x)
        first = packed(layer)
        layer(torch.randn(20, 7))
        assert packed(layer) is first is not None
    for mode in (True, False):
        layer.train(mode)
        assert packed(layer) is None
        with torch.no_grad():
            layer(x)
        assert packed(layer) is not None


@pytest.mark.parametrize("grad", [False, True])
def test_packed_group_follows_each_of_its_layers(grad: bool) -> None:
    layers, joint, x = (
        [pair(7, width, seed)[0] for seed, width in enumerate((4, 1, 9))],
        PackedLinearGroup(),
        torch.randn(2, 5, 7),
    )
    for layer in layers:
        with torch.set_grad_enabled(grad):
            outs, relus = joint(x, layers), joint(x, layers, "relu")
        assert [out.shape for out in outs] == [(2, 5, 4), (2, 5, 1), (2, 5, 9)]
        for out, relu, member in zip(outs, relus, layers, strict=True):
            assert out.requires_grad is grad
            torch.testing.assert_close(out.double(), exact(x, member), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(relu.double(), exact(x, member).clamp(min=0), atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            layer.weight.add_(0.1)
            layer.bias.mul_(2)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(joint(x, layers)[-1].double(), exact(x, layers[-1]), atol=1e-5, rtol=1e-5)


@needs_onednn
def test_copies_and_pickles_hold_no_packed_weights() -> None:
    model, tokenizer = tiny_model(4, retrieval_k=0), tiny_tokenizer()
    patches = random_patches(model, 2)

    def written(of: nn.Module) -> Tensor:
        with torch.no_grad():
            return generate(of, of.encode(patches), tokenizer, DecodingConfig(min_length=6)).ids  # type: ignore[operator]

    expected = written(model)
    keeping = [module for module in model.modules() if isinstance(module, Linear) and packed(module) is not None]
    assert keeping
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    assert len(file.getvalue()) < 1.3 * sum(4 * value.numel() for value in model.state_dict().values())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(packed(module) is None for module in other.modules() if isinstance(module, Linear))
        assert torch.equal(written(other), expected)
        with torch.no_grad():
            other.to_words.bias[2] += 100.0  # the copy ends at once, the original does not
        assert not torch.equal(written(other), expected)
        assert torch.equal(written(model), expected)
    assert all(packed(module) is not None for module in keeping)


# --- without oneDNN ---------------------------------------------------------------------------------------------------


def test_uses_pytorch_where_onednn_is_off_or_lacks_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = pair()[0], torch.randn(3, 7)
    with torch.no_grad():
        layer(x)  # packed before

    def refuse(*_: object) -> Tensor:
        raise AssertionError("oneDNN was called")

    monkeypatch.setattr(cpu_kernels, "product", refuse)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not runs_on_onednn(x, layer.weight)
        check(layer, x)
        torch.testing.assert_close(layer.activated(x, "relu").double(), exact(x, layer).clamp(min=0), atol=1e-5, rtol=0)
    double = pair()[0].to(torch.float64)
    assert not runs_on_onednn(x.double(), double.weight)
    check(double, x.double())


@pytest.mark.parametrize("grad", [False, True])
def test_returns_bfloat16_under_autocast(grad: bool) -> None:
    layer, x = pair()[0], torch.randn(3, 7)
    with torch.no_grad():
        layer(x)  # packed in float32 before
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
        relu = layer.activated(x, "relu")
    assert out.dtype == relu.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact(x, layer), atol=5e-2, rtol=5e-2)
    torch.testing.assert_close(relu.double(), exact(x, layer).clamp(min=0), atol=5e-2, rtol=5e-2)
    if grad:
        out.float().sum().backward()
        assert layer.weight.grad is not None
        torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(4, 7), atol=5e-2, rtol=5e-2)
    with torch.no_grad():
        assert layer(x).dtype == torch.float32


@needs_onednn
def test_matmul_dtype_keeps_the_type_of_the_input_and_ends_with_its_context() -> None:
    layer, x = pair()[0], torch.randn(64, 7)
    with torch.no_grad():
        plain = layer(x)
        with matmul_dtype(torch.bfloat16):
            rounded = layer(x)
            with matmul_dtype(None):
                assert torch.equal(layer(x), plain)
        assert torch.equal(layer(x), plain)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, plain)
    torch.testing.assert_close(rounded, plain, atol=5e-2, rtol=5e-2)
    with matmul_dtype(torch.bfloat16):
        torch.testing.assert_close(layer(x).double(), exact(x, layer), atol=1e-5, rtol=1e-5)  # gradients are wanted
    with pytest.raises(RuntimeError, match="left early"), matmul_dtype(torch.bfloat16):
        raise RuntimeError("left early")
    with torch.no_grad():
        assert torch.equal(layer(x), plain)


def test_matmul_dtype_acts_without_onednn() -> None:
    layer, x = pair()[0], torch.randn(64, 7)
    with torch.backends.mkldnn.flags(enabled=False), torch.no_grad():
        plain = layer(x)
        with matmul_dtype(torch.bfloat16):
            rounded, frozen = layer(x), layer.freeze()(x)
    assert rounded.dtype == frozen.dtype == torch.float32
    for out in (rounded, frozen):
        assert not torch.equal(out, plain)
        torch.testing.assert_close(out, plain, atol=5e-2, rtol=5e-2)


def test_pass_without_gradient_under_autocast_leaves_the_gradient_of_a_later_pass() -> None:
    """As on a GPU; PyTorch up to 2.10 keeps the cast weights of the first pass for the second one."""
    layer, x = pair()[0], torch.randn(3, 7)
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            layer(x)
        layer(x).float().sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(4, 7), atol=5e-2, rtol=5e-2)


class Mallinfo2(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def allocated_bytes() -> int:
    """Bytes that this process has allocated and not freed, without what the allocator keeps for later."""
    function = ctypes.CDLL(None).mallinfo2
    function.restype = Mallinfo2
    info = function()
    return int(info.uordblks + info.hblkhd)


@needs_onednn
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the allocations of glibc")
def test_products_of_ever_new_sizes_do_not_add_memory() -> None:
    layer, limit = Linear(256, 512).eval(), int(cpu_kernels._CACHED_SHAPES)
    with torch.inference_mode():
        for rows in range(1, limit + 2):
            layer(torch.zeros(rows, 256))
        before = allocated_bytes()
        for rows in range(limit + 2, limit + 66):
            layer(torch.zeros(rows, 256))
        assert allocated_bytes() - before < 64 * 64 * 1024  # one product takes 640 KiB with AVX-512
