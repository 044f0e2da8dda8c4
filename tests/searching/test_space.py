"""Axes as people name them, the values that they have of themselves, and points that are the same model."""

import itertools

import pytest

from saap_edge.api.recipes import recipe_of
from saap_edge.errors import SaapError
from saap_edge.searching.axes import axes_of, parsed
from saap_edge.searching.space import Space, key_of

FORMATS = ["gguf-q8_0", "onnx-int4"]


@pytest.fixture(scope="module")
def recipe():
    return recipe_of({"export": {"formats": FORMATS}, "recover": {"tokens": 0}})


def axes(recipe, *given):
    return axes_of(parsed(given), recipe, {"prune.ratio": [0, 0.3], "export.formats": recipe.export.formats})


def test_names_are_those_of_the_recipe(recipe):
    found = {axis.field: axis.values for axis in axes(recipe, "ratio,format,group,effort,repair", "tokens=0,4096")}
    assert found == {
        "prune.ratio": (0, 0.3), "export.formats": tuple(FORMATS), "export.group": (32, 64, 128, 256),
        "prune.effort": ("quick", "normal", "thorough"), "prune.repair": (False, True), "recover.tokens": (0, 4096),
    }  # fmt: skip


def test_values_that_are_given(recipe):
    [ratio] = axes(recipe, "prune.ratio=0.4,0.1,0.4")
    assert ratio.values == (0.1, 0.4) and ratio.ordered
    [only] = axes(recipe, "prune.only=ffn,null")
    assert only.values == ("ffn", None) and not only.ordered


@pytest.mark.parametrize(("given", "expected"), [
    ("ratoi", "did you mean 'ratio'"), ("samples", "score.samples, prune.samples"), ("window", "perplexity"),
    ("score.window=32,64", "perplexity"), ("tokens", "give values, as --over tokens=A,B"), ("target=rpi5", "no field"),
    ("ratio=0.2,1.5", "--over ratio=1.5: Input should be less than 1"), ("ratio,effort=quick", "another --over"),
    ("effort=fast", "quick"), ("ratio=", "another --over"), ("format=gguf-q9", "gguf-q9"), ("ratio,ratio", "twice"),
    ("ratio,prune.ratio", "twice"), ("bench.rounds=3,5", "no field"), ("group=48", "--over group=48"),
    ("ratio=[", "no values"),
])  # fmt: skip
def test_axes_without_sense(recipe, given, expected):
    with pytest.raises(SaapError, match=r".") as refused:
        axes(recipe, given)
    assert expected in str(refused.value) and "\n" not in str(refused.value)


def test_the_dense_model_is_one_point_a_format_and_group(recipe):
    space = Space(axes(recipe, "ratio,format,effort", "group=32,64"), recipe)
    dense = [point for point in space.points.values() if point["ratio"] == 0]
    assert sorted(map(key_of, dense)) == sorted(map(key_of, [
        {"ratio": 0, "format": "gguf-q8_0"}, {"ratio": 0, "format": "onnx-int4", "group": 32},
        {"ratio": 0, "format": "onnx-int4", "group": 64},
    ]))  # fmt: skip
    assert len(space.points) == 3 + 2 * 3 * 2  # and formats, efforts, groups


def test_points_are_recipes(recipe):
    space = Space(axes(recipe, "ratio=0,0.2", "format,effort", "tokens=0,4096"), recipe)
    for point in space.points.values():
        made = space.recipe(point)
        assert made.export.formats == (point["format"],)
        if point["ratio"]:
            assert (made.prune.ratio, made.prune.effort) == (point["ratio"], point["effort"])
            assert made.recover.tokens == point["tokens"]
        else:
            assert made.prune == recipe.prune and made.recover == recipe.recover
    labels = {space.label(point) for point in space.points.values()}
    assert labels == {
        "",
        *(f"effort={e} tokens={t}" for e, t in itertools.product(("quick", "normal", "thorough"), (0, 4096))),
    }


def test_limits_are_those_of_the_format(recipe):
    limits = [{"metric": "file_mib", "max": 1, "artifact": "onnx-int4"}, {"metric": "file_mib", "max": 2}]
    limited = recipe_of(recipe, budget={"limits": limits})
    space = Space(axes(limited, "format"), limited)
    kept = {point["format"]: len(space.recipe(point).budget.limits) for point in space.points.values()}
    assert kept == {"gguf-q8_0": 1, "onnx-int4": 2}


def test_spaces_without_sense(recipe):
    with pytest.raises(SaapError, match="2 formats: name format in --over"):
        Space(axes(recipe, "ratio"), recipe)
    many = [
        f"{name}={','.join(map(str, range(20, 216)))}" for name in ("score.samples", "prune.samples", "recover.tokens")
    ]
    with pytest.raises(SaapError, match="7529536 combinations"):
        Space(axes(recipe, "format=gguf-q8_0", *many), recipe)
