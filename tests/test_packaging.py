"""What the package promises about itself: its dependencies, its lock, its version, its layers, its commands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "conet_onnx"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# What is imported under another name than it is installed.
IMPORTED_AS = {
    "lightning-fabric": "lightning_fabric",
    "onnx-graphsurgeon": "onnx_graphsurgeon",
    "onnxruntime-gpu": "onnxruntime",
    "pillow": "PIL",
    "protobuf": "google",
}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def locked(file: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / file).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def applies(requirement: Requirement, extras: set[str]) -> bool:
    """Whether a requirement counts on this machine, for a package asked for with these extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})


def imports(source: str, package: tuple[str, ...]) -> set[str]:
    """Dotted names of all that a file imports, inside functions too; `package` is where relative imports start."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*start, *(node.module or "").split("."))).strip(".")
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def order() -> list[str]:
    """The layers as docs/architecture.md lists them, first column by row; a module imports only from its left."""
    rows = re.findall(r"^\| (`.+?`) \|", (ROOT / "docs/architecture.md").read_text(), re.M)
    listed = [name for row in rows for name in re.findall(r"`([\w/]+?)/?`", row)]
    return [*listed[:-1], "__init__", listed[-1], "__main__"]  # the command line, which is last, may use the facade


def files_of_package() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer(dotted: str, layers: list[str]) -> str:
    """The layer of a name in the package, by module or by package; what is no module of it is a name of the facade."""
    parts = dotted.split(".")[1:]
    found = [name for name in ("/".join(parts[:2]), parts[0] if parts else "") if name in layers]
    return found[0] if found else "__init__"


def text_files() -> list[Path]:
    """What git keeps, but for this file and for what is not text; nothing where there is no git."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    return [f for f in files if f.is_file() and f != Path(__file__) and b"\0" not in f.read_bytes()[:4096]]


class TestDependencies:
    RUN = names(PROJECT["project"]["dependencies"])
    DEV = names(PROJECT["dependency-groups"]["dev"])
    EXTRA = names([line for lines in PROJECT["project"]["optional-dependencies"].values() for line in lines])

    def test_each_has_a_line_that_says_why_and_no_line_is_left_over(self):
        rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+?) \|$", (ROOT / "docs/dependencies.md").read_text(), re.M)
        assert {name for name, _, _ in rows} == self.RUN | self.DEV | self.EXTRA

    def test_the_package_imports_only_what_it_declares(self):
        declared = {IMPORTED_AS.get(name, name) for name in self.RUN | self.EXTRA} | {"conet_onnx"}
        for file in files_of_package():
            used = {name.split(".")[0] for name in imports(file.read_text(), file.relative_to(ROOT).parent.parts)}
            undeclared = used - declared - set(sys.stdlib_module_names)
            assert not undeclared, f"{file.relative_to(ROOT)} imports {undeclared}"

    def test_what_no_module_imports_is_said_to_be_so(self):
        used: set[str] = set()
        for file in files_of_package():
            used |= {name.split(".")[0] for name in imports(file.read_text(), file.relative_to(ROOT).parent.parts)}
        unused = {name for name in self.RUN if IMPORTED_AS.get(name, name) not in used}
        text = (ROOT / "docs/dependencies.md").read_text()
        assert unused == set(re.findall(r"^\| `([^`]+)` \| No module imports it yet:", text, re.M))

    def test_what_is_optional_is_imported_inside_functions_alone(self):
        for file in files_of_package():
            tree = ast.parse(file.read_text())
            tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            top = {name.split(".")[0] for name in imports(ast.unparse(tree), file.relative_to(ROOT).parent.parts)}
            assert not top & {IMPORTED_AS.get(name, name) for name in self.EXTRA}, file

    @pytest.mark.parametrize("requirement", PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"])
    def test_each_is_locked_at_one_exact_version_that_fits(self, requirement):
        asked = Requirement(requirement)
        pins = [pin for pin in locked("run.txt") + locked("dev.txt") if canonicalize_name(pin.name) == asked.name]
        assert len(pins) == 1
        (version,) = pins[0].specifier
        assert version.operator == "=="
        assert asked.specifier.contains(version.version)
        assert str(pins[0].marker or "") == str(asked.marker or "")


class TestLock:
    def test_every_line_is_an_exact_version_and_names_no_place(self):
        for file in ("run.txt", "dev.txt"):
            for pin in locked(file):
                assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{file}: {pin}"
                assert pin.url is None

    def test_no_package_is_listed_twice(self):
        listed = [canonicalize_name(pin.name) for pin in locked("run.txt") + locked("dev.txt")]
        assert sorted(listed) == sorted(set(listed))

    @pytest.mark.parametrize(
        ("file", "asked"),
        [("run.txt", PROJECT["project"]["dependencies"]), ("dev.txt", PROJECT["dependency-groups"]["dev"])],
    )
    def test_it_lists_all_that_is_needed_and_nothing_else(self, file, asked):
        here = {canonicalize_name(pin.name) for pin in locked(file) if applies(pin, set())}
        elsewhere = {canonicalize_name(pin.name) for pin in locked("run.txt")} if file == "dev.txt" else set()
        todo = [line for line in map(Requirement, asked) if canonicalize_name(line.name) in here]
        needed: dict[str, set[str]] = {}
        while todo:
            requirement = todo.pop()
            name, extras = canonicalize_name(requirement.name), {*requirement.extras, ""}
            if name in elsewhere or extras <= needed.get(name, set()):
                continue
            needed.setdefault(name, set()).update(extras)
            asks = [r for r in map(Requirement, metadata.requires(name) or []) if applies(r, extras)]
            if name == "torch":  # a CUDA build asks for libraries that the Makefile leaves to torch's own metadata
                asks = [r for r in asks if canonicalize_name(r.name) in here]
            todo += asks
        assert set(needed) == here

    def test_what_is_tested_is_what_is_locked(self):
        for pin in locked("run.txt") + locked("dev.txt"):
            if applies(pin, set()):
                installed = metadata.version(pin.name).split("+")[0]  # torch says +cpu
                assert pin.specifier.contains(installed), f"{pin}, but {installed} is installed: run make venv"


class TestVersion:
    VERSION = PROJECT["project"]["version"]

    def test_the_installed_package_has_it(self):
        assert metadata.version("conet-onnx") == self.VERSION

    def test_no_file_of_the_package_repeats_it(self):
        for file in files_of_package():
            assert f'"{self.VERSION}"' not in file.read_text(), file

    def test_the_changelog_opens_with_it_or_with_what_is_to_come(self):
        heads = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
        assert self.VERSION in heads[:2]
        assert heads[0] in (self.VERSION, "Unreleased")


class TestLayers:
    def test_the_documents_list_every_module_once(self):
        present = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
        present |= {path.stem for path in PACKAGE.glob("*.py")}
        listed = [name for name in order() if "/" not in name or not (PACKAGE / f"{name}.py").exists()]
        assert sorted(listed) == sorted(present)

    @pytest.mark.parametrize("file", files_of_package(), ids=lambda file: str(file.relative_to(PACKAGE)))
    def test_a_module_imports_only_from_its_left(self, file):
        layers = order()
        own = layer(".".join(file.relative_to(ROOT).with_suffix("").parts), layers)
        if own == "__init__":
            pytest.skip("the facade sees everything, lazily")
        for name in sorted(imports(file.read_text(), file.relative_to(ROOT).parent.parts)):
            if name.split(".")[0] == "conet_onnx":
                other = layer(name, layers)
                assert layers.index(other) <= layers.index(own), f"{own} imports {name}, which is not left of it"


class TestCommands:
    MAKEFILE = (ROOT / "Makefile").read_text()
    TARGETS = frozenset(re.findall(r"^([a-z]+):", MAKEFILE, re.M))

    def test_the_readme_promises_demo_and_test(self):
        promised = set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text()))
        assert {"demo", "test"} <= promised

    def test_what_the_documents_promise_exists(self):
        for document in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]:
            commands = re.findall(r"(?:^ {4}|^\$ |`)make ([a-z]+)", document.read_text(), re.M)
            assert set(commands) <= self.TARGETS, document

    def test_ci_runs_make_test_and_nothing_else(self):
        lines = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line and not line.startswith("#")]
        assert lines == ["set -euo pipefail", 'cd "$(dirname "${BASH_SOURCE[0]}")/.."', "exec make test"]

    def test_make_test_runs_every_check(self):
        assert re.search(r"^test: lint types tests$", self.MAKEFILE, re.M)

    def test_every_target_is_explained_and_phony(self):
        (phony,) = re.findall(r"^\.PHONY: (.+)$", self.MAKEFILE, re.M)
        assert set(phony.split()) == self.TARGETS
        explained = " ".join(re.findall(r'@echo "make ([a-z ]+?)  ', self.MAKEFILE))
        assert self.TARGETS - {"help", "format"} <= set(explained.split())

    def test_the_makefile_is_understood_by_make(self):
        command = ["make", "--dry-run", "--always-make", "test"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class TestFiles:
    FORBIDDEN = re.compile(r"\.\./shared|/work/|(?<![\w.])/tmp/|/home/|/root/|--(?:extra-)?index-url|--find-links")

    def test_none_names_a_place_on_a_machine_or_a_registry(self):
        for file in text_files():
            found = self.FORBIDDEN.search(file.read_text(errors="replace"))
            assert found is None, f"{file.relative_to(ROOT)} mentions {found[0]}"

    @pytest.mark.parametrize(
        "name", ["Makefile", ".ci/run", "pyproject.toml", "requirements/run.txt", "requirements/dev.txt"]
    )
    def test_what_installs_leaves_the_registry_to_pip(self, name):
        assert "://" not in (ROOT / name).read_text()

    def test_none_is_large(self):
        for file in text_files():
            assert file.stat().st_size < 1 << 20, file

    def test_the_licence_is_the_one_declared(self):
        assert PROJECT["project"]["license"] == "Apache-2.0"
        assert (ROOT / "LICENSE").read_text().split()[:4] == ["Apache", "License", "Version", "2.0,"]
