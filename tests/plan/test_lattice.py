"""The algebra of crossed components, on textbook data and on games whose values are known."""

from __future__ import annotations

from fractions import Fraction as Ratio
from itertools import permutations
from math import fsum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.plan.lattice import (
    EMPTY,
    ROMAN,
    Cell,
    Weights,
    effect_weights,
    fraction,
    gains,
    order_weights,
    subsets,
)

# the filtration rate of Montgomery, Design and Analysis of Experiments, example 6.2: an unreplicated 2^4
FILTRATION = {
    "": 45, "a": 71, "b": 48, "ab": 65, "c": 68, "ac": 60, "bc": 80, "abc": 65,
    "d": 43, "ad": 100, "bd": 45, "abd": 104, "cd": 75, "acd": 86, "bcd": 70, "abcd": 96,
}  # fmt: skip
RATE = {frozenset(cell): float(rate) for cell, rate in FILTRATION.items()}


def value(weights: Weights | None, means: dict[Cell, float]) -> float:
    assert weights is not None
    assert fsum(weights.values()) == pytest.approx(0)
    return fsum(weight * means[cell] for cell, weight in weights.items())


@pytest.mark.parametrize(
    ("effect", "known"),
    [("a", 21.625), ("b", 3.125), ("c", 9.875), ("d", 14.625), ("ab", 0.125), ("ac", -18.125), ("ad", 16.625),
     ("bc", 2.375), ("bd", -0.375), ("cd", -1.125), ("abc", 1.875), ("abcd", 1.375)],
)  # fmt: skip
def test_effects_of_a_factorial(effect: str, known: float) -> None:
    assert value(effect_weights(frozenset(effect), RATE), RATE) == pytest.approx(known)


@pytest.mark.parametrize(
    ("effect", "known", "alias"),
    [("a", 19.0, "bcd"), ("b", 1.5, "acd"), ("c", 14.0, "abd"), ("d", 16.5, "abc"), ("ab", -1.0, "cd"),
     ("ac", -18.5, "bd"), ("ad", 19.0, "bc")],
)  # fmt: skip
def test_effects_of_a_half_fraction(effect: str, known: float, alias: str) -> None:
    """Montgomery, example 8.1: the half of it with I = ABCD."""
    half = fraction("abcd", 4)
    assert half is not None
    assert {"".join(sorted(cell)) for cell in half.cells} == {"", "ab", "ac", "ad", "bc", "bd", "cd", "abcd"}
    assert half.aliases(frozenset(effect)) == (frozenset(alias),)
    assert value(half.weights(frozenset(effect)), RATE) == pytest.approx(known)
    assert len(list(half.effects())) == 7


@pytest.mark.parametrize(
    ("count", "asked", "cells", "resolution"),
    [(3, 3, 4, 3), (4, 3, 8, 4), (4, 4, 8, 4), (5, 3, 8, 3), (5, 4, 16, 5), (5, 5, 16, 5), (6, 4, 16, 4), (6, 5, 32, 6),
     (7, 3, 8, 3), (7, 4, 16, 4), (7, 7, 64, 7), (8, 4, 16, 4), (8, 5, 64, 5), (9, 4, 32, 4), (10, 3, 16, 3),
     (10, 4, 32, 4), (10, 5, 128, 5), (8, 8, 128, 8)],
)  # fmt: skip
def test_sizes_of_fractions(count: int, asked: int, cells: int, resolution: int) -> None:
    """As in Box, Hunter & Hunter 2005, table 6.22: the smallest fraction of a resolution."""
    found = fraction("abcdefghij"[:count], asked)
    assert found is not None
    assert (len(set(found.cells)), found.resolution) == (cells, resolution)


@pytest.mark.parametrize(("count", "asked"), [(3, 4), (4, 5), (5, 6), (7, 8)])
def test_no_such_fraction(count: int, asked: int) -> None:
    assert fraction("abcdefg"[:count], asked) is None


@settings(deadline=None)
@given(st.integers(3, 10), st.integers(3, 8))
def test_aliases_can_not_be_told_apart(count: int, asked: int) -> None:
    found = fraction("abcdefghij"[:count], asked)
    if found is None:
        assert asked > count
        return
    assert found.resolution >= asked
    effects = list(found.effects())
    assert [effect for effect in effects if len(effect) == 1] == [frozenset(name) for name in found.components]
    classes = [{effect, *found.aliases(effect)} for effect in effects]
    assert sum(map(len, classes)) == len(set().union(*classes)), "no effect is in two sums"
    for effect, alike in zip(effects, classes, strict=True):
        weights = found.weights(effect)
        assert all(found.weights(other) == weights for other in alike)
        assert fsum(weights.values()) == pytest.approx(0)
        assert set(map(abs, weights.values())) == {2 / len(found.cells)}
        assert all(fsum(weights[cell] for cell in found.cells if name in cell) == pytest.approx(0)
                   for name in found.components if frozenset(name) not in alike)  # fmt: skip


def test_roman_numerals() -> None:
    assert [ROMAN.index(each) for each in ("III", "IV", "V", "VI", "VII", "VIII")] == [3, 4, 5, 6, 7, 8]


# --- Shapley -------------------------------------------------------------------------------------------------------

GLOVES = {cell: float("c" in cell and len(cell) > 1) for cell in subsets("abc")}  # a, b: left gloves; c: the right one
AIRPORT = {cell: float(max((" abc".index(plane) for plane in cell), default=0)) for cell in subsets("abc")}


@pytest.mark.parametrize(
    ("game", "known"),
    [(GLOVES, ["1/6", "1/6", "4/6"]), (AIRPORT, ["1/3", "5/6", "11/6"])],
    ids=["gloves", "airport"],
)
def test_shapley(game: dict[Cell, float], known: list[str]) -> None:
    assert [value(order_weights(player, game), game) for player in "abc"] == pytest.approx(
        [float(Ratio(each)) for each in known]
    )


def test_gains() -> None:
    assert sorted(gains("c", GLOVES)) == [0, 1, 1, 1]
    assert gains("a", {frozenset(): 1.0, frozenset("b"): 5.0}) == []


@st.composite
def posets(draw: st.DrawFn) -> dict[str, set[str]]:
    """Components, each with what it requires among those above it."""
    names = "abcde"[: draw(st.integers(1, 5))]
    return {name: draw(st.sets(st.sampled_from(names[:index]))) if index else set() for index, name in enumerate(names)}


def cells_of(requires: dict[str, set[str]]) -> list[Cell]:
    return [cell for cell in subsets(requires) if all(requires[name] <= cell for name in cell)]


@given(posets(), st.randoms(use_true_random=False))
def test_the_mean_over_all_orders(requires: dict[str, set[str]], rng: object) -> None:
    """By the definition: the mean gain over every order in which each stands below what it requires."""
    cells = cells_of(requires)
    means = {cell: float(rng.randrange(100)) for cell in cells}  # type: ignore[attr-defined]
    orders = [
        order for order in permutations(requires)
        if all(requires[name] <= set(order[:index]) for index, name in enumerate(order))
    ]  # fmt: skip
    found = {name: value(order_weights(name, cells), means) for name in requires}
    for name, got in found.items():
        each = [frozenset(order[: order.index(name)]) for order in orders]
        assert got == pytest.approx(fsum(means[below | {name}] - means[below] for below in each) / len(orders))
    assert fsum(found.values()) == pytest.approx(means[frozenset(requires)] - means[EMPTY])


@given(posets())
def test_effects_where_some_cells_can_not_be(requires: dict[str, set[str]]) -> None:
    cells = cells_of(requires)
    needs: dict[str, set[str]] = {}
    for name, direct in requires.items():
        needs[name] = direct.union(*(needs[other] for other in direct))
    for effect in (each for each in subsets(requires) if each):
        weights = effect_weights(effect, cells)
        assert (weights is None) == any(needs[name] & effect for name in effect)
        if weights is not None:
            assert fsum(weights.values()) == pytest.approx(0)
            on = fsum(weight for cell, weight in weights.items() if len(effect - cell) % 2 == 0)
            assert on == pytest.approx(1), "of one component: the mean with it less the mean without it"


@pytest.mark.parametrize("cells", [["", "a", "b"], ["", "a", "b", "c", "ac", "bc"], ["a", "ab"], ["", "ab"]])
def test_no_order_reaches_all_components(cells: list[str]) -> None:
    """Where two conflict there is no total gain that could be shared out."""
    found = [order_weights(name, [frozenset(cell) for cell in cells]) for name in "abc"]
    assert found == [None, None, None]
