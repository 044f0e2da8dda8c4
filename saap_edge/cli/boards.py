"""Boards: list, show, probe."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from saap_edge.cli.base import JsonOption, app, console

__all__: list[str] = []

target_app = typer.Typer(
    help="Boards: list, show, and probe this machine.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(target_app, name="target")


@target_app.command("list")
def target_list(as_json: JsonOption = False) -> None:
    """Known boards."""
    from saap_edge.targets import list_targets, load_target

    targets = [load_target(name) for name in list_targets()]
    if as_json:
        print(json.dumps([target.model_dump(mode="json") for target in targets]))
    for target in [] if as_json else targets:
        print(f"{target.name:12} {target.title}")


@target_app.command("show")
def target_show(name: Annotated[str, typer.Argument(help="Name or YAML file")]) -> None:
    """A board's figures with their sources."""
    from saap_edge.targets import dump_yaml, load_target

    print(dump_yaml(load_target(name)), end="")


@target_app.command("probe")
def target_probe() -> None:
    """Measure this machine and print it as a target file: `saap-edge target probe > targets/host.yaml`."""
    from saap_edge.targets import dump_yaml, probe_target

    with console.status("measuring memory bandwidth"):
        target = probe_target()
    print(dump_yaml(target), end="")
