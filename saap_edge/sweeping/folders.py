"""The folder of each recipe: its recipe.yaml, and links to what it made, where people look for it."""

from __future__ import annotations

from pathlib import Path

import yaml

from saap_edge.cache import link
from saap_edge.chain.run import PUBLIC, publish
from saap_edge.sweeping.graph import Graph, Member

__all__ = ["RECIPE", "publish_runs"]

RECIPE = "recipe.yaml"


def publish_runs(graph: Graph, made: set[str]) -> None:
    """Write DIR/runs/NAME of every recipe. `made` are the keys of stages that are there. A recipe that lacks one has
    no links, not even those of an earlier sweep.

    Raises SaapError where a file of others is in the way.
    """
    runs = graph.root.parent / "runs"
    for member in graph.members.values():
        folder = runs / member.name
        folder.mkdir(parents=True, exist_ok=True)
        _write_recipe(member, folder / RECIPE)
        link(graph.root, folder / "stages")
        if made >= set(member.keys.values()):
            publish({name: graph.root / key for name, key in member.keys.items()}, folder)
        else:
            for name in PUBLIC:
                if (folder / name).is_symlink():
                    (folder / name).unlink()


def _write_recipe(member: Member, path: Path) -> None:
    text = f"# {member.name}: saap-edge compile {RECIPE} --out .\n"
    text += yaml.safe_dump(member.context.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        beside = path.with_name(f".{path.name}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
