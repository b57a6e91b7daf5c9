"""Finds inputs on which a comparison of gradients and maps means something: ``python -m tests.parity.choose_cases 96``.

Three things make random cases worthless or unfair: a map that is constant after its ReLU agrees with anything; a channel
of Grad-CAM++ or XGrad-CAM next to a pole of its weight turns the last bit of the input into a different map; and a
pre-activation within rounding of the kink of its ReLU gives two equally right gradients. This prints, for every architecture,
the images and classes with no such trouble, measured on pytorch-grad-cam and torch.autograd alone. They are the table in cases.py.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tests import oracles
from tests.models import ARCHITECTURES, TestModel, make_inputs, make_model

KINKS: dict[type[nn.Module], tuple[float, ...]] = {
    nn.ReLU: (0.0,),
    nn.ReLU6: (0.0, 6.0),
    nn.Hardswish: (-3.0, 3.0),
    nn.Hardsigmoid: (-3.0, 3.0),
}
SMALLEST_DEVIATION = 0.01
FIRST_SEED = 100
GOOD_ENOUGH = 2.5
IMAGES_NEEDED = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image and a class: how far from trouble. Larger is better for the first, smaller for the second."""

    image_seed: int
    class_index: int
    margin: float
    rounding: float


def kink_margins(model: nn.Module, inputs: oracles.Array) -> oracles.Array:
    """(N,) smallest distance of any pre-activation from a kink, in standard deviations of its layer."""
    margins = np.full(len(inputs), np.inf)

    def measure(module: nn.Module, arguments: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        values = arguments[0].detach().flatten(1)
        for kink in KINKS[type(module)]:
            distance = (values - kink).abs().amin(1) / values.std()
            np.minimum(margins, distance.numpy(), out=margins)

    handles = [m.register_forward_hook(measure) for m in model.modules() if type(m) in KINKS]
    with torch.no_grad():
        model(torch.from_numpy(inputs).to(next(model.parameters()).dtype))
    for handle in handles:
        handle.remove()
    return margins


def candidates(model: TestModel, first_seed: int, count: int, class_index: int) -> list[Candidate]:
    """The images of ``count`` seeds that are sound for one class (or rank)."""
    seeds = range(first_seed, first_seed + count)
    inputs = np.concatenate([make_inputs(1, model.size, seed) for seed in seeds])
    double = oracles.in_double(model.module)
    margins = kink_margins(double, inputs)
    passes = [
        oracles.autograd(module, model.target_layers, inputs, [class_index] * count)
        for module in (model.module, double)
    ]
    rounding = np.zeros(count)
    deviation = np.full(count, np.inf)
    for layer in model.target_layers:
        single, exact = (backward.gradients[layer] for backward in passes)
        largest = np.abs(exact).max((1, 2, 3))
        # Ten times: gradients are compared at 1e-5, maps at 1e-4.
        rounding = np.maximum(rounding, 10 * np.abs(single - exact).max((1, 2, 3)) / largest)
    for method in oracles.METHODS:
        maps32, maps64 = (oracles.replayed_maps(backward, method, (model.size, model.size)) for backward in passes)
        pairs = [(maps32.refined, maps64.refined), *((maps32.layers[k], maps64.layers[k]) for k in model.target_layers)]
        for map32, map64 in pairs:
            rounding = np.maximum(rounding, np.abs(map32 - map64).max((1, 2)))
            deviation = np.minimum(deviation, map64.std((1, 2)))
    return [
        Candidate(seed, class_index, float(margins[i]), float(rounding[i]))
        for i, seed in enumerate(seeds)
        if deviation[i] > SMALLEST_DEVIATION
    ]


def choose(model: TestModel, count: int, batch: int, classes: tuple[int, ...]) -> list[tuple[float, int, int]]:
    """(badness, image seed, class) of images sound for the prediction and for a given class, best first."""
    best: dict[int, tuple[float, int, int]] = {}
    for first in range(FIRST_SEED, FIRST_SEED + count, batch):
        predicted = {c.image_seed: c for c in candidates(model, first, batch, -1)}
        for class_index in classes if predicted else ():
            for given in candidates(model, first, batch, class_index):
                partner = predicted.get(given.image_seed)
                if partner is None:
                    continue
                # Rounding of one float32 activation is about 1e-6 of its layer's deviation.
                badness = max(given.rounding, partner.rounding) / 1e-5 + 1e-6 / given.margin
                entry = (badness, given.image_seed, class_index)
                best[given.image_seed] = min(best.get(given.image_seed, entry), entry)
        if sum(badness < GOOD_ENOUGH for badness, _, _ in best.values()) >= IMAGES_NEEDED:
            break
    return sorted(best.values())


def main() -> None:
    """Prints one line an architecture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", type=int)
    parser.add_argument("--classes", type=int, default=20, help="K")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.only:
        model = make_model(name, arguments.seed, arguments.size, arguments.classes)
        given = tuple(range(1, arguments.classes, max(1, arguments.classes // 4)))
        ranked = choose(model, arguments.images, arguments.batch, given)
        print(name, *(f"(badness {b:.2g}, image {i}, class {k})" for b, i, k in ranked[:4]), flush=True)


if __name__ == "__main__":
    main()
