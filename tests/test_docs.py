"""What the documents show is true: blocks of Python run, commands parse, shown output is what the command prints."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*/README.md"))]
# What prints the same on every machine, and soon; the rest of what is shown took training or a clock.
REPEATABLE = frozenset({"analyze", "resize", "score", "verify"})


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True, slots=True)
class Command:
    """A command line that a document shows, and what it shows below it."""

    place: str
    arguments: tuple[str, ...]
    output: str

    def __str__(self) -> str:
        return f"{self.place}-{'-'.join(self.arguments[:1])}"


def blocks(document: Path) -> list[Block]:
    text = document.read_text()
    found = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.M | re.S)
    return [Block(document, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in found]


def commands(block: Block) -> list[Command]:
    """The lines that call conet-onnx: bare ones, or after `$ ` with their output until the next `$ `."""
    lines = block.text.replace("\\\n", " ").splitlines()
    found: list[tuple[str, list[str]]] = []
    shown = False
    for line in lines:
        call = re.fullmatch(r"(\$ )?(?:\.venv/bin/)?conet-onnx (.*)", line)
        if call:
            found.append((call[2], []))
            shown = bool(call[1])
        elif line.startswith("$ "):
            shown = False
        elif shown:
            found[-1][1].append(line)
    place = str(block)
    return [Command(place, tuple(shlex.split(line, comments=True)), "\n".join(out).strip("\n")) for line, out in found]


BLOCKS = [block for document in DOCUMENTS if document.exists() for block in blocks(document)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [command for block in BLOCKS if block.language != "python" for command in commands(block)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to write in where the models of the project are in reach."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if any(b.document == d for b in PYTHON)], ids=lambda d: d.name
)
def test_the_python_of_a_document_runs_from_top_to_bottom(document, folder):
    names: dict[str, object] = {"__name__": "__main__"}
    for block in PYTHON:
        if block.document == document:
            # Empty lines make a traceback point at the line of the document.
            exec(compile("\n" * block.line + block.text, str(document), "exec"), names)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_line_parses(command, folder):
    from conet_onnx.cli.command import State
    from conet_onnx.cli.main import group

    for argument in command.arguments:
        if re.search(r"\.(onnx|json|npz|parquet)$", argument) and not Path(argument).exists():
            Path(argument).parent.mkdir(parents=True, exist_ok=True)
            Path(argument).touch()
    name, *rest = command.arguments
    with click.Context(group, info_name="conet-onnx", obj=State()) as above:
        found = group.get_command(above, name)
        assert found is not None, f"there is no command {name!r}"
        found.make_context(name, rest, parent=above)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.output and c.arguments[0] in REPEATABLE], ids=str)
def test_the_output_that_is_shown_is_what_is_printed(command, folder):
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-m", "conet_onnx", *command.arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    printed = "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip("\n") + "\n"
    wanted = "\n".join(line.rstrip() for line in command.output.splitlines()) + "\n"
    # A line of dots stands for lines that are left out.
    if not doctest.OutputChecker().check_output(wanted, printed, doctest.ELLIPSIS):
        assert printed == wanted


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.exists()], ids=lambda d: str(d.relative_to(ROOT)))
def test_every_link_inside_the_project_leads_somewhere(document):
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (document.parent / target).exists(), target
