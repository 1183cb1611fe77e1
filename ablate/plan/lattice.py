"""The algebra of crossed components: effects, interactions, Shapley values and fractions, as weights of cells.

A cell is the set of components that are on; a weight says how a cell's mean enters an effect. Where some cells can't be
(one component requires another, two conflict), an effect is the mean over the places where it applies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations

Cell = frozenset[str]
Weights = dict[Cell, float]

EMPTY: Cell = frozenset()
ROMAN = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")


def subsets(components: Iterable[str]) -> Iterator[Cell]:
    """Yield every subset, the smaller first, each size in the given order."""
    names = list(components)
    for size in range(len(names) + 1):
        yield from map(frozenset, combinations(names, size))


def effect_weights(effect: Cell, cells: Collection[Cell]) -> Weights | None:
    """Return the weights of a main effect or an interaction; None where it applies nowhere.

    Over a whole factorial this is E_S = 2·mean(y·Π_{i∈S} ±1) (Box, Hunter & Hunter 2005, ch. 5): of one component the
    mean change that it makes, of two half the difference of the differences, and so on. Over a part of it, the mean of
    the same over those settings of the others at which every combination of S is there.
    """
    present = set(cells)
    corners = list(subsets(sorted(effect)))
    contexts = [cell for cell in cells if not cell & effect and all(cell | corner in present for corner in corners)]
    if not contexts:
        return None
    share = 1 / (len(contexts) * 2 ** (len(effect) - 1))
    return {context | corner: share * (-1) ** (len(effect) - len(corner)) for context in contexts for corner in corners}


def order_weights(component: str, cells: Collection[Cell]) -> Weights | None:
    """Return the weights of a component's mean gain over all orders in which the components can be added.

    With every cell there, this is the Shapley value (Shapley 1953); where one requires another, the mean is over the
    orders that respect it (Faigle & Kern 1992). The values of all components sum to the total gain exactly. None where
    no order reaches the cell with every component on.
    """
    full = EMPTY.union(*cells)
    ways_up, ways_down = _ways(cells)
    if not ways_up.get(full):
        return None
    weights: Weights = {}
    for below, above in _gains(component, cells):
        share = ways_up.get(below, 0) * ways_down.get(above, 0) / ways_up[full]
        weights[above] = weights.get(above, 0.0) + share
        weights[below] = weights.get(below, 0.0) - share
    return {cell: weight for cell, weight in weights.items() if weight}


def gains(component: str, means: Mapping[Cell, float]) -> list[float]:
    """Return what adding a component changes, at each setting of the others."""
    return [means[above] - means[below] for below, above in _gains(component, means)]


def _gains(component: str, cells: Collection[Cell]) -> Iterator[tuple[Cell, Cell]]:
    present = set(cells)
    for cell in cells:
        if component not in cell and cell | {component} in present:
            yield cell, cell | {component}


def _ways(cells: Collection[Cell]) -> tuple[dict[Cell, int], dict[Cell, int]]:
    """Return, by cell, in how many orders it is reached from nothing, and everything from it."""
    rising = sorted(cells, key=len)
    full = rising[-1]
    up = {EMPTY: 1} if EMPTY in set(cells) else {}
    for cell in rising:
        if cell:
            up[cell] = sum(up.get(cell - {name}, 0) for name in cell)
    down = {full: 1}
    for cell in reversed(rising[:-1]):
        down[cell] = sum(down.get(cell | {name}, 0) for name in full - cell)
    return up, down


# --- two-level fractions -------------------------------------------------------------------------------------------


class Fraction:
    """A regular two-level fraction 2^(K−p) of maximal resolution for its size (Box, Hunter & Hunter 2005, ch. 6).

    ``words`` are those of the defining relation: a product of components that is the same in every cell.
    """

    def __init__(self, components: Sequence[str], generators: Mapping[str, Cell]) -> None:
        self.components = tuple(components)
        self.generators = dict(generators)
        self.words = _defining_words(generators)
        self.cells = tuple(_fraction_cells(components, generators))

    @property
    def resolution(self) -> int:
        """The length of the shortest word: main effects are mixed with products of one fewer components."""
        return min(map(len, self.words))

    def aliases(self, effect: Cell) -> tuple[Cell, ...]:
        """Return what an effect is summed with, the shorter first; itself is not among them."""
        return tuple(sorted((effect ^ word for word in self.words), key=lambda cell: (len(cell), sorted(cell))))

    def weights(self, effect: Cell) -> Weights:
        """Return the weights of an effect with all its aliases: 2·mean(y·Π ±1) over the cells of the fraction."""
        share = 2 / len(self.cells)
        return {cell: share * (-1) ** len(effect - cell) for cell in self.cells}

    def effects(self) -> Iterator[Cell]:
        """Yield one effect of one or two components for each sum that can be told apart: mains first."""
        seen: set[Cell] = set()
        for effect in (each for each in subsets(self.components) if 0 < len(each) <= 2):
            if effect not in seen:
                seen |= {effect, *self.aliases(effect)}
                yield effect


def fraction(components: Sequence[str], resolution: int) -> Fraction | None:
    """Return the smallest fraction of at least this resolution, and of such the highest; None if only all cells do."""
    for base in range(2, len(components)):
        if 2**base < len(components) + 1:
            continue
        for wanted in range(len(components), resolution - 1, -1):
            found = _generators(components[:base], components[base:], wanted)
            if found is not None:
                return Fraction(components, found)
    return None


def _generators(base: Sequence[str], added: Sequence[str], resolution: int) -> dict[str, Cell] | None:
    """Search for a product of base components for each added one such that no word is too short; depth first."""
    candidates = [product for product in subsets(base) if len(product) >= max(2, resolution - 1)]
    candidates.sort(key=lambda product: (-len(product), sorted(map(list(base).index, product))))

    def search(chosen: tuple[Cell, ...], words: tuple[Cell, ...], start: int) -> tuple[Cell, ...] | None:
        if len(chosen) == len(added):
            return chosen
        for index in range(start, len(candidates)):
            word = candidates[index] | {added[len(chosen)]}
            more = (word, *(word ^ other for other in words))
            if min(map(len, more)) >= resolution:
                found = search((*chosen, candidates[index]), (*words, *more), index + 1)
                if found is not None:
                    return found
        return None

    found = search((), (), 0)
    return None if found is None else dict(zip(added, found, strict=True))


def _defining_words(generators: Mapping[str, Cell]) -> tuple[Cell, ...]:
    words: tuple[Cell, ...] = ()
    for name, product in generators.items():
        word = product | {name}
        words = (*words, word, *(word ^ other for other in words))
    return words


def _fraction_cells(components: Sequence[str], generators: Mapping[str, Cell]) -> Iterator[Cell]:
    base = [name for name in components if name not in generators]
    for chosen in subsets(base):
        # an added component is on where the product of its generator's levels (on: +1, off: −1) is +1
        added = {name for name, product in generators.items() if len(product - chosen) % 2 == 0}
        yield frozenset(chosen | added)
