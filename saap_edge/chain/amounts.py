"""How much text the stages take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saap_edge.recipe import Recipe

__all__ = ["SEARCH_WINDOWS", "SELF_TOKENS", "written_tokens"]

SEARCH_WINDOWS = 8  # calibration windows that follow the scored ones: the search compares plans on them
SELF_TOKENS = 250_000  # that a model writes at most where data.self_tokens says nothing


def written_tokens(recipe: Recipe) -> int:
    """Tokens that the model writes: data.self_tokens, else its share of what scoring, search, repair and recovery take.

    At most SELF_TOKENS then: recovery goes over the text again.

    >>> from saap_edge.recipe import Recipe
    >>> [written_tokens(Recipe(data={"calibration": text})) for text in ("self", ["self", "text.txt"])]
    [240000, 120000]
    """
    if recipe.data.self_tokens:
        return recipe.data.self_tokens
    windows = max(recipe.score.samples + SEARCH_WINDOWS, recipe.prune.samples)
    most = max(windows * recipe.score.window, recipe.recover.tokens)
    return math.ceil(min(most, SELF_TOKENS) * recipe.data.written)
