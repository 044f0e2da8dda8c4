"""Go's template language, as far as our Modelfiles use it, and the real one where Go is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

_ACTION = re.compile(r'\{\{((?:"(?:\\.|[^"\\])*"|[^"}])*)\}\}')
_WORD = re.compile(r'"(?:\\.|[^"\\])*"|[()]|[^\s()]+')
PROGRAM = r"""package main

import (
	"encoding/json"
	"os"
	"text/template"
)

// Ollama's names for what a template gets (template/template.go of its repository).
type message struct{ Role, Content string }

func main() {
	var cases []struct {
		Template string
		Chats    [][]message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	var out [][]string
	for _, one := range cases {
		made := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
		var prompts []string
		for _, chat := range one.Chats {
			system := ""
			if chat[0].Role == "system" {
				system = chat[0].Content
			}
			var text writer
			values := map[string]any{"Messages": chat, "System": system, "Response": ""}
			if err := made.Execute(&text, values); err != nil {
				panic(err)
			}
			prompts = append(prompts, string(text))
		}
		out = append(out, prompts)
	}
	json.NewEncoder(os.Stdout).Encode(out)
}

type writer []byte

func (w *writer) Write(p []byte) (int, error) { *w = append(*w, p...); return len(p), nil }
"""


def by_go(cases: list[tuple[str, list[Any]]], folder: Path) -> list[list[str]]:
    """The prompts of (template, chats), by Go's own text/template."""
    (folder / "main.go").write_text(PROGRAM)
    (folder / "go.mod").write_text("module render\n\ngo 1.21\n")
    asked = [{"Template": template, "Chats": chats} for template, chats in cases]
    go = shutil.which("go")
    assert go is not None
    done = subprocess.run([go, "run", "."], cwd=folder, input=json.dumps(asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    return found


def rendered(template: str, chat: list[dict[str, str]]) -> str:
    """The prompt of a chat: range, if, else if, else, end, fields, one variable, eq, ne, and, texts."""
    system = chat[0]["content"] if chat[0]["role"] == "system" else ""
    parts = _ACTION.split(template)
    nodes = [("text", part) if index % 2 == 0 else ("do", part.strip()) for index, part in enumerate(parts)]
    tree, rest = _block(nodes)
    assert not rest
    return _run(tree, {"$": {"Messages": chat, "System": system}, ".": {"Messages": chat, "System": system}})


def _block(nodes: list) -> tuple[list, list]:
    """Statements up to the `end` or `else` of this block, and the nodes from there on."""
    found = []
    while nodes:
        kind, text = nodes[0]
        if kind == "do" and (text == "end" or text.startswith("else")):
            return found, nodes
        nodes = nodes[1:]
        if kind == "do" and text.startswith(("range ", "if ")):
            branches = [(text, None)]
            while True:
                body, nodes = _block(nodes)
                branches[-1] = (branches[-1][0], body)
                text, nodes = nodes[0][1], nodes[1:]
                if text == "end":
                    break
                branches.append((text.removeprefix("else").strip() or "else", None))
            found.append(("branch", branches))
        else:
            found.append((kind, text))
    return found, nodes


def _run(tree: list, names: dict) -> str:
    text = ""
    for kind, value in tree:
        if kind == "text":
            text += value
        elif kind == "branch" and value[0][0].startswith("range "):
            variables = re.match(r"range (\$\w+), (\$\w+) := \.Messages", value[0][0])
            for index, message in enumerate(names["."]["Messages"]):
                fields = {"Role": message["role"], "Content": message["content"]}
                inner = names | {".": fields, variables[1]: index, variables[2]: fields}
                text += _run(value[0][1], inner)
                names |= {name: inner[name] for name in names if name not in ("$", ".")}
        elif kind == "branch":
            for condition, body in value:
                if condition == "else" or _value(_WORD.findall(condition.removeprefix("if ")), names):
                    inner = dict(names)
                    text += _run(body, inner)
                    names |= {name: inner[name] for name in names}
                    break
        elif match := re.fullmatch(r"(\$\w+) :?= (.*)", value):
            names[match[1]] = _value(_WORD.findall(match[2]), names)
        else:
            text += str(_value(_WORD.findall(value), names))
    return text


def _value(words: list[str], names: dict) -> Any:
    arguments = []
    while words:
        word, words = words[0], words[1:]
        if word == "(":
            depth, end = 1, 0
            while depth:
                depth += {"(": 1, ")": -1}.get(words[end], 0)
                end += 1
            arguments.append(_value(words[: end - 1], names))
            words = words[end:]
        elif word[0] == '"':
            arguments.append(json.loads(word.replace("\\x22", '\\"')))
        elif word[0] in "$.":
            name, _, field = word.partition(".")
            value = names[name or "."]
            arguments.append(value[field] if field else value)
        else:
            arguments.append(int(word) if word.isdigit() else word)
    function, *given = arguments
    if function == "eq":
        return given[0] == given[1]
    if function == "ne":
        return given[0] != given[1]
    if function == "and":
        return all(given)
    assert not given, function
    return function
