"""What each layer takes, from how long whole subnets take. No torch.

A subnet's milliseconds are taken as a fixed part and the sum over its layers. Layers are not timed
alone: a graph's ends (layouts, a call's own cost) take as long as a small layer does.

There are more forms of layers than subnets that one wants to time, so the fit has two steps. First
a layer's time is a sum over what it does (``layers.FEATURES``), with factors that are not negative.
Then each form may leave that by as much as timings ask for: ridge regression on relative errors,
whose strength is chosen by cross-validation. A form that no timed subnet had stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.costs.table import TablePart
from models.measure.layers import Form, all_forms, features, layers_of
from models.space.arch import Arch
from models.space.search_space import SearchSpace

_LEEWAYS = (0.03, 0.1, 0.3, 1.0)
"""How far a form may be from what its features say, relative to that: what is tried."""
_NOISE = 0.01
"""Of a subnet's time, relative to it."""
_FOLDS = 5


@dataclass(frozen=True, eq=False)
class Forms:
    """Every form of a space's layers once, and which an arch has."""

    space: SearchSpace
    forms: tuple[Form, ...]
    places: tuple[tuple[tuple[int, ...], np.ndarray], ...]

    @classmethod
    def of(cls, space: SearchSpace) -> Forms:
        """Tabulate the layers of a space."""
        position = {decision.name: i for i, decision in enumerate(space.decisions)}
        known: dict[Form, int] = {}
        places = []
        for layer in layers_of(space):
            forms = all_forms(space, layer)
            numbers = np.array(
                [known.setdefault(form, len(known)) if form else -1 for form in forms.ravel()]
            ).reshape(forms.shape)
            places.append((tuple(position[name] for name in layer.decisions), numbers))
        return cls(space, tuple(known), tuple(places))

    def counts(self, archs: Sequence[Arch]) -> np.ndarray:
        """How often each arch has each form: float64 (archs, forms)."""
        counts = np.zeros((len(archs), len(self.forms) + 1))
        for row, arch in zip(counts, archs, strict=True):
            indices = self.space.indices(arch)
            for axes, numbers in self.places:
                row[numbers[tuple(indices[list(axes)])]] += 1
        return counts[:, :-1]  # the last column is of layers that are left out

    def features(self) -> np.ndarray:
        """float64 (forms, features)."""
        return np.stack([features(form) for form in self.forms])


@dataclass(frozen=True, eq=False)
class Fitted:
    """Milliseconds: the fixed part, and of each form. ``leeway``: what cross-validation chose."""

    forms: Forms
    fixed: float
    each: np.ndarray
    leeway: float

    def predict(self, archs: Sequence[Arch]) -> np.ndarray:
        """Milliseconds of some archs."""
        return self.fixed + self.forms.counts(archs) @ self.each

    def parts(self) -> tuple[TablePart, ...]:
        """As a cost table has them."""
        padded = np.append(self.each, 0.0)
        return tuple(
            TablePart(layer.name, layer.decisions, np.round(padded[numbers], 7))
            for layer, (_, numbers) in zip(
                layers_of(self.forms.space), self.forms.places, strict=True
            )
        )


def fit(forms: Forms, archs: Sequence[Arch], ms: np.ndarray) -> Fitted:
    """Fit to the timings of some archs, milliseconds (archs,)."""
    counts = forms.counts(archs)
    folds = np.arange(len(archs)) % _FOLDS
    errors = []
    for leeway in _LEEWAYS:
        wrong = np.empty(len(archs))
        for fold in range(_FOLDS):
            out = folds == fold
            fixed, each = _solve(forms, counts[~out], ms[~out], leeway)
            wrong[out] = (fixed + counts[out] @ each) / ms[out] - 1
        errors.append(float(np.sqrt(np.mean(wrong**2))))
    leeway = _LEEWAYS[int(np.argmin(errors))]
    return Fitted(forms, *_solve(forms, counts, ms, leeway), leeway)


def _solve(
    forms: Forms, counts: np.ndarray, ms: np.ndarray, leeway: float
) -> tuple[float, np.ndarray]:
    does = forms.features()
    design = np.column_stack([np.ones(len(counts)), counts @ does]) / ms[:, None]
    fixed, *factors = _not_negative(design, np.ones(len(ms)))
    expected = does @ np.array(factors)
    # relative to its expected size, each form is a number near 1
    scaled = np.column_stack([np.full(len(ms), fixed), counts * expected]) / ms[:, None]
    rest = 1 - scaled.sum(axis=1)
    kernel = leeway**2 * scaled @ scaled.T + _NOISE**2 * np.eye(len(ms))
    moves = leeway**2 * scaled.T @ np.linalg.solve(kernel, rest)
    factors_of = np.maximum(1 + moves, 0)
    return float(fixed * factors_of[0]), expected * factors_of[1:]


def _not_negative(design: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Least squares with factors that are not negative: coordinate descent, from zero."""
    size = np.linalg.norm(design, axis=0)
    used = np.flatnonzero(size)  # a space without attention has no products
    unit = design[:, used] / size[used]
    gram, aim = unit.T @ unit, unit.T @ wanted
    found = np.zeros(len(used))
    for _ in range(500):
        for k in range(len(found)):
            found[k] = max(0.0, found[k] + aim[k] - gram[k] @ found)
    factors = np.zeros(design.shape[1])
    factors[used] = found / size[used]
    return factors
