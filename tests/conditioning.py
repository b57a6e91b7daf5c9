"""Makes a random network a fair test: moves its biases until two right implementations must agree on given images.

Two things give different answers to equally exact computations. A pre-activation within rounding of a kink of its ReLU
has two one-sided derivatives, and the last bit of the sum decides between them. And the channel weights of Grad-CAM++
and XGrad-CAM have poles where a channel's sum over the layer is zero or negative. A random network meets both at almost
every image; so the biases in front of the activations are shifted, channel by channel, by a few hundredths of a standard
deviation, to where no value of the given images is near a kink, and those at the end of a target layer to where the
channel sums are positive. What remains is measured with `kink_margins`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

KINKS: dict[Any, tuple[float, ...]] = {
    functional.relu: (0.0,),
    functional.relu6: (0.0, 6.0),
    functional.hardtanh: (0.0, 6.0),
    functional.leaky_relu: (0.0,),
    functional.hardswish: (-3.0, 3.0),
    functional.hardsigmoid: (-3.0, 3.0),
}
SHIFTS = 401
LARGEST_SHIFT = 0.1
SMALLEST_MEAN = 0.3

Array = npt.NDArray[np.floating]


class _Activations(TorchFunctionMode):
    """Calls ``visit(input, kinks)`` in place of the input of every activation that has kinks."""

    def __init__(self, visit: Callable[[torch.Tensor, tuple[float, ...]], torch.Tensor]) -> None:
        super().__init__()
        self._visit = visit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in KINKS:
            args = (self._visit(args[0], KINKS[func]), *args[1:])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def condition(module: nn.Module, target_layers: Sequence[str], images: Array) -> None:
    """Shifts biases in place, in one forward pass in float64.

    Args:
        module: in eval mode, without in-place modules.
        target_layers: module paths.
        images: (N, 3, H, W).
    """
    # The pass runs on a copy; a shift goes into the copy's activations and into the biases of the module itself.
    double = copy.deepcopy(module).double()
    originals = dict(module.named_modules())
    last: list[tuple[nn.Module, float | torch.Tensor]] = []

    def shift(values: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
        layer, gain = last[-1]
        rounded = (amount / gain).float()
        layer.bias.add_(rounded)
        moved = (rounded.double() * gain).reshape(-1, *[1] * (values.ndim - 2))
        return values.add_(moved)  # in place: a skip connection may take these values too

    def remember(path: str) -> Callable[..., None]:
        scale = getattr(originals.get(path.rsplit(".block", 1)[0]), "layer_scale", None)
        gain = 1.0 if scale is None else scale.flatten().double()
        return lambda *_: last.append((originals[path], gain))

    def clear_kinks(values: torch.Tensor, kinks: tuple[float, ...]) -> torch.Tensor:
        crossed = _crossed(values, kinks)
        return shift(values, _clearing_shift(values, crossed)) if last and crossed else values

    def raise_means(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if bool((output >= 0).all()) or len(last[-1][0].bias) != output.shape[1]:
            return None
        deviation = output.std((0, 2, 3))
        return shift(output, (SMALLEST_MEAN * deviation - output.mean((2, 3)).amin(0)).clamp(min=0.0))

    for path, layer in double.named_modules():
        if getattr(layer, "bias", None) is not None and isinstance(layer, nn.BatchNorm2d | nn.Conv2d | nn.Linear):
            layer.register_forward_pre_hook(remember(path))  # some apply their activation themselves
        if path in target_layers:
            layer.register_forward_hook(raise_means)
    with _Activations(clear_kinks):
        double(torch.from_numpy(images).double())


def _crossed(values: torch.Tensor, kinks: tuple[float, ...]) -> tuple[float, ...]:
    """The kinks that rounding can carry a value across.

    Where another activation has cut the values off exactly at a kink, as in relu(relu(x)), none can: what is near it is
    near the kink of the first one, and a shift of the biases in front of that one would not be a shift of these values.
    """
    return tuple(kink for kink in kinks if kink not in (values.min(), values.max()))


def _clearing_shift(values: torch.Tensor, kinks: tuple[float, ...]) -> torch.Tensor:
    """(C,) the shift of each channel, out of SHIFTS, that leaves its values farthest from the kinks."""
    per_channel = values.transpose(0, 1).flatten(1).contiguous().sort(dim=1).values.contiguous()
    spread = values.std()
    shifts = torch.linspace(-LARGEST_SHIFT, LARGEST_SHIFT, SHIFTS, dtype=values.dtype) * spread
    margins = torch.full((len(per_channel), SHIFTS), torch.inf, dtype=values.dtype)
    for kink in kinks:
        wanted = (kink - shifts).expand(len(per_channel), -1).contiguous()
        above = torch.searchsorted(per_channel, wanted).clamp(max=per_channel.shape[1] - 1)
        below = (above - 1).clamp(min=0)
        for neighbour in (above, below):
            margins = torch.minimum(margins, (per_channel.gather(1, neighbour) - wanted).abs())
    return shifts[margins.argmax(1)]


@torch.no_grad()
def kink_margins(module: nn.Module, images: Array) -> Array:
    """(N,) smallest distance of any pre-activation from a kink, in standard deviations of its tensor.

    Args:
        module: float64, in eval mode.
        images: (N, 3, H, W).
    """
    margins = np.full(len(images), np.inf)

    def measure(values: torch.Tensor, kinks: tuple[float, ...]) -> torch.Tensor:
        for kink in _crossed(values, kinks):
            distance = (values - kink).abs().flatten(1).amin(1) / values.std()
            np.minimum(margins, distance.numpy(), out=margins)
        return values

    with _Activations(measure):
        module(torch.from_numpy(images).double())
    return margins
