"""Pages of the site that are generated, so that they cannot go stale: the commands, and the Python API.

mkdocs calls `on_files` (mkdocs.yml); `python mkdocs_hooks.py` prints the page of the commands. The commands are read
from the Typer app itself, and their texts are those of `--help`. mkdocstrings reads the API from the docstrings of
`saap_edge.api`.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

import typer.main

from saap_edge.cli import app

COMMANDS_HEAD = """# Commands

This page is generated from the commands themselves: its texts are those of `saap-edge COMMAND --help`.
[Using saap-edge](usage.md) says what they are for.
"""
API_PAGE = """# Python API

This page is generated from the docstrings of `saap_edge.api`. [From Python](api.md) is the overview.

::: saap_edge.api
"""


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those of docs/."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "cli.md", content=commands_page()))
    files.append(File.generated(config, "reference.md", content=API_PAGE))
    return files


def commands_page() -> str:
    """The page of all commands, in Markdown."""
    root = typer.main.get_command(app)
    parts = [COMMANDS_HEAD, prose(root.help)]
    for path, command in walk(root, "saap-edge"):
        parts.append(section(path, command))
    return "\n".join(parts)


def walk(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command below a group, with the words that call it."""
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if hasattr(command, "commands"):
            yield from walk(command, f"{path} {name}")


def section(path: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and not getattr(one, "hidden", False)]
    words = [path, *(called(one) if one.required else f"[{called(one)}]" for one in arguments)]
    if hasattr(command, "commands"):
        words.append("COMMAND")
    if options:
        words.append("[OPTIONS]")
    lines = [f"## {path}\n", f"    {' '.join(words)}\n", prose(command.help)]
    if arguments:
        lines += ["| argument | is |", "|---|---|"]
        lines += [f"| `{called(one)}` | {cell(one.help)} |" for one in arguments]
        lines.append("")
    if options:
        lines += ["| option | value | default | is |", "|---|---|---|---|"]
        kinds = typing.get_type_hints(inspect.unwrap(command.callback))
        lines += [
            f"| {names(one)} | {value(one, kinds[one.name])} | {default(one)} | {explained(one)} |" for one in options
        ]
        lines.append("")
    return "\n".join(lines)


def prose(text: str | None) -> str:
    """A help text as Markdown: lines that are indented are code there too."""
    text = inspect.cleandoc(text or "").replace("\b\n", "").replace("\b", "")
    lines = [line if line.startswith("    ") else linked(line.replace("<", "&lt;")) for line in text.splitlines()]
    return "\n".join(lines) + "\n"


def linked(text: str) -> str:
    """Pages of docs/ that a text names, as links: a page that is gone fails the build."""
    return re.sub(r"\bdocs/([\w-]+\.md)\b", r"[\1](\1)", text)


def cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")


def called(argument: Any) -> str:
    return (argument.metavar or argument.name.upper()) + ("..." if argument.nargs != 1 else "")


def names(option: Any) -> str:
    return ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))


def value(option: Any, kind: Any) -> str:
    """What an option takes, by the annotation of the function's parameter."""
    if option.is_flag:
        return ""
    text = str(kind)
    word = next((word for part, word in (("Path", "PATH"), ("int", "N"), ("float", "X")) if part in text), "TEXT")
    least = getattr(option, "min", None) or getattr(getattr(option, "type", None), "min", None)
    return f"`{word}`" + (f", at least {least}" if least is not None else "")


def default(option: Any) -> str:
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return option.show_default
    return "" if option.is_flag or option.default in (None, (), []) else f"`{option.default}`"


def explained(option: Any) -> str:
    variable = f" (environment: `{option.envvar}`)" if option.envvar else ""
    return cell(option.help) + variable


if __name__ == "__main__":
    print(commands_page())
