"""The widths that a recipe's plan may choose."""

import pytest

from saap_edge.chain.space import space_of
from saap_edge.model.checkpoint import read_spec
from saap_edge.pruning.kept import uniform_widths
from saap_edge.recipe import Recipe, bundled_model
from saap_edge.targets import load_target


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.35, 0.5])
def test_whoever_asks_for_uniform_gets_equal_layers_and_a_rival_comes_near_the_budget(ratio):
    spec, target = read_spec(bundled_model()), load_target("rpi5")
    asked, rival = (
        space_of(spec, Recipe(model="m", target="rpi5", prune={"method": method, "ratio": ratio}), target)
        for method in ("uniform", "auto")
    )
    widths = uniform_widths(asked, ratio)
    assert all(layer == widths[0] for layer in widths) and asked.removed(widths) >= ratio
    assert spec.hidden % (widths[0]["attention"] * widths[0]["slots"]) == 0  # transformers' plain class takes it
    assert ratio - 0.002 <= rival.removed(uniform_widths(rival, ratio)) <= ratio + 0.02
