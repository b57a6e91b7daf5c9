"""Finds inputs on which a comparison of maps means something: ``python -m tests.parity.choose_cases 96``.

A map that is constant after its ReLU agrees with anything, and a weight next to a pole turns the last bit of an
activation into a different map. For every architecture this tries pairs of images, each with a model conditioned on
it (see tests.conditioning), until one image pair is sound for the prediction and for a given class each, measured on
pytorch-grad-cam and torch.autograd alone. What it prints is the table in cases.py.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from tests import oracles
from tests.conditioning import kink_margins
from tests.models import ARCHITECTURES, TestModel, make_inputs, make_model

SMALLEST_DEVIATION = 0.015
FIRST_SEED = 100
# Four times this is the tolerance for maps that needs no allowance for rounding.
GOOD_ENOUGH = oracles.TOLERANCE_FLOOR / 4


def roundings(model: TestModel, double: torch.nn.Module, inputs: oracles.Array, class_index: int) -> oracles.Array:
    """(N,) largest difference between the maps of the float32 and the float64 model, inf where a map is constant.

    Gradients count ten times, since they are compared with a tenth of the tolerance.
    """
    count, size = len(inputs), (model.size, model.size)
    single, exact = (
        oracles.autograd(module, model.target_layers, inputs, [class_index] * count)
        for module in (model.module, double)
    )
    worst = np.zeros(count)
    for layer in model.target_layers:
        largest = np.maximum(np.abs(exact.gradients[layer]).max((1, 2, 3)), np.finfo(np.float32).tiny)
        error = np.abs(single.gradients[layer] - exact.gradients[layer]).max((1, 2, 3))
        worst = np.maximum(worst, 10 * error / largest)
    for method in oracles.METHODS:
        rounded, true = (oracles.replayed_maps(backward, method, size) for backward in (single, exact))
        pairs = [(rounded.refined, true.refined), *((rounded.layers[k], true.layers[k]) for k in model.target_layers)]
        for one, other in pairs:
            worst = np.maximum(worst, np.abs(one - other).max((1, 2)))
            worst[other.std((1, 2)) < SMALLEST_DEVIATION] = np.inf
    return worst


def choose(name: str, size: int, num_classes: int, pairs: int) -> tuple[float, str]:
    """The worst rounding of the best pair, and the pair in words."""
    best = (np.inf, "none found")
    for first in range(FIRST_SEED, FIRST_SEED + 2 * pairs, 2):
        inputs = np.concatenate([make_inputs(1, size, seed) for seed in (first, first + 1)])
        model = make_model(name, 0, size, num_classes, inputs)
        double = oracles.in_double(model.module)
        predicted = roundings(model, double, inputs, -1)
        if not predicted.max() < best[0]:
            continue
        given, chosen = np.full(2, np.inf), [0, 0]
        for class_index in range(1, num_classes, max(1, num_classes // 6)):
            found = roundings(model, double, inputs, class_index)
            chosen = [class_index if found[i] < given[i] else chosen[i] for i in range(2)]
            given = np.minimum(given, found)
            if given.max() < GOOD_ENOUGH:
                break
        worst = float(max(predicted.max(), given.max()))
        margin = kink_margins(double, inputs).min()
        words = f"images {first}, {first + 1}, classes {chosen}, rounding {worst:.1e}, kink margin {margin:.1e}"
        best = min(best, (worst, words))
        if worst < GOOD_ENOUGH:
            break
    return best


def main() -> None:
    """Prints one line an architecture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", type=int)
    parser.add_argument("--classes", type=int, default=20, help="K")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--only", nargs="*", default=ARCHITECTURES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.only:
        print(name, choose(name, arguments.size, arguments.classes, arguments.pairs)[1], flush=True)


if __name__ == "__main__":
    main()
