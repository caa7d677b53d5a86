"""Commands import what they need and nothing heavy besides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import save, small_model

HEAVY = ("numpy", "onnx", "torch", "torchvision", "onnxruntime", "optuna", "plotly", "rich", "scipy", "networkx")
HEAVY += ("pyarrow", "lightning", "PIL")
PROGRAM = """
import sys
from conet_onnx.cli.main import main
code = main(sys.argv[1:])
print("imported", *sorted(name for name in sys.modules if "." not in name), file=sys.stderr)
sys.exit(code)
"""


def imported(*arguments: str | Path) -> set[str]:
    """The top-level modules that a command has imported in a fresh process by the time it is done."""
    made = subprocess.run([sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return set(made.stderr.splitlines()[-1].split()[1:])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(small_model(), tmp_path_factory.mktemp("imports") / "small.onnx")


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, conet_onnx; print(*sorted(m for m in sys.modules if '.' not in m))"
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {*HEAVY, "click"} & set(made.stdout.split())


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("search", "--help"), ("resize", "--help"), ("score", "--help")]
)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not set(HEAVY) & imported(*arguments)


def test_analyze_needs_neither_torch_nor_onnxruntime(model: Path) -> None:
    assert not {"torch", "torchvision", "onnxruntime", "optuna", "plotly", "pyarrow"} & imported("analyze", model)


def test_score_needs_neither_torch_nor_onnxruntime(model: Path) -> None:
    assert not {"torch", "torchvision", "onnxruntime", "optuna", "plotly", "pyarrow"} & imported("score", model)


def test_resize_needs_no_torch(model: Path, tmp_path: Path) -> None:
    found = imported("resize", model, "-o", tmp_path / "out.onnx", "--scale", "0.5")
    assert not {"torch", "torchvision", "optuna", "plotly", "pyarrow"} & found


def test_resize_by_budget_without_proof_needs_no_onnxruntime(model: Path, tmp_path: Path) -> None:
    found = imported("resize", model, "-o", tmp_path / "out.onnx", "--budget", "macs=0.5", "--no-verify")
    assert not {"torch", "torchvision", "onnxruntime", "optuna", "plotly", "pyarrow"} & found


def test_resize_by_low_ranks_without_proof_needs_neither_torch_nor_onnxruntime(model: Path, tmp_path: Path) -> None:
    found = imported(
        "resize", model, "-o", tmp_path / "out.onnx", "--scale", "0.5", "--transfer", "evbmf", "--no-verify"
    )
    assert not {"torch", "torchvision", "onnxruntime", "optuna", "plotly", "pyarrow"} & found


def test_bench_needs_no_torch(model: Path) -> None:
    found = imported("bench", model, "--threads", "1", "--provider", "cpu")
    assert not {"torch", "torchvision", "optuna", "plotly", "pyarrow"} & found


def test_evaluate_needs_no_torch(model: Path) -> None:
    found = imported("evaluate", model, "--data", "digits", "--mean", "0", "--std", "1")
    assert not {"torch", "torchvision", "optuna", "plotly"} & found


def test_training_waits_for_no_compiler() -> None:
    program = "import sys, conet_onnx.searching.job; print('torch._dynamo' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "False"
