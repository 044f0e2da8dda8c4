"""The layers of the package: imports run downwards between folders, lazy ones too."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "saap_edge"

# Whoever is in a layer imports from the layers below it, and from nothing beside it but its own folder. A folder, or a
# module that lies in the package itself.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("api",),
    ("searching",),
    ("sweeping", "worth"),
    ("chain", "publishing"),
    ("drafting", "remote", "report", "tracking"),
    ("recipe",),
    ("measuring",),
    ("gating", "probe"),
    ("prediction",),
    ("evaluation", "layouts"),
    ("bundle",),
    ("sources",),
    ("gguf_input",),
    ("writing",),
    ("exporting", "recovery"),
    ("pruning",),
    ("model",),
    ("families", "gguf_file"),
    ("artifacts", "chat"),
    ("engines",),
    ("documents",),
    ("targets",),
    ("cache", "machine"),
    ("files", "formats", "progress", "settings", "telemetry", "yaml_lines"),
    ("registry",),
    ("errors",),
)
LEVEL = {name: len(LAYERS) - number for number, layer in enumerate(LAYERS) for name in layer}


def rooms() -> dict[str, set[tuple[str, str]]]:
    """For every folder or module of the package, (file, room) of all that it imports from others."""
    found: dict[str, set[tuple[str, str]]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.name == "__init__.py" and len(relative.parts) == 1:
            continue
        own = relative.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in imported(node):
                if name != own:
                    found.setdefault(own, set()).add((str(relative), name))
    return found


def imported(node: ast.AST) -> list[str]:
    """Rooms of this package that a statement imports from."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        one = node.module == "saap_edge"  # the folders themselves are named
        names = [f"saap_edge.{alias.name}" for alias in node.names] if one else [node.module]
    return [name.split(".")[1] for name in names if name.startswith("saap_edge.") and name.split(".")[1] in LEVEL]


def test_every_folder_has_its_layer():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert there - {"__init__"} == LEVEL.keys()


@pytest.mark.parametrize("room", LEVEL)
def test_imports_run_downwards(room):
    upwards = [f"{file} imports {name}" for file, name in sorted(rooms().get(room, ())) if LEVEL[name] >= LEVEL[room]]
    assert not upwards
