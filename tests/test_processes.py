"""Two processes that share each batch end with the weights of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_support import call, save, small_model
from onnx import numpy_helper

LINE = "finetune model.onnx --data data.npz --mean 0 --std 1 --threads 1 --provider cpu --epochs 2 --accelerator cpu"
PLAIN = "--batchnorm none --batch 24 --schedule constant --lr 0.01"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """99 samples: four batches of 24 and one of 3, of which one process has two and the other one."""
    save(small_model(classes=4), tmp_path / "model.onnx")
    save(small_model(classes=4, seed=1), tmp_path / "teacher.onnx")
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 99), ("val", 40), ("test", 40)):
        labels = rng.integers(0, 4, count)
        images = rng.normal(0, 0.3, (count, 1, 8, 8)) + (labels - 1.5)[:, None, None, None]
        arrays |= {f"x_{split}": images.astype(np.float32), f"y_{split}": labels}
    np.savez(tmp_path / "data.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def apart(a: str, b: str) -> float:
    """The largest difference between two models' weights, of the largest weight."""
    one, two = ({t.name: numpy_helper.to_array(t) for t in onnx.load(name).graph.initializer} for name in (a, b))
    assert one.keys() == two.keys()
    return max(float(np.abs(one[name] - two[name]).max()) / float(np.abs(one[name]).max()) for name in one)


def start(words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=environment)


TEACHER = "--teacher teacher.onnx --loss mse --accumulate 2 --ema 0.5 --optimizer adamw"


@pytest.mark.parametrize("more", ["", TEACHER, "--channel-dropout 0.3"])
def test_two_devices_end_where_one_does(folder: Path, more: str) -> None:
    assert call(f"{LINE} {PLAIN} {more} -o one.onnx --json one.json").code == 0
    words = [*LINE.split(), *PLAIN.split(), *more.split(), "-o", "two.onnx", "--json", "two.json"]
    done = start([sys.executable, "-m", "conet_onnx", *words, "--devices", "2", "--strategy", "ddp"])
    assert done.returncode == 0, done.stderr
    assert apart("model.onnx", "one.onnx") > 1e-3
    assert apart("one.onnx", "two.onnx") < 1e-6
    one, two = (json.loads(Path(name).read_text()) for name in ("one.json", "two.json"))
    for a, b in zip(one["epochs"], two["epochs"], strict=True):
        for name in a.keys() - {"seconds"}:
            assert a[name] == pytest.approx(b[name], rel=1e-5), name
    assert one["after"]["test"]["loss"] == pytest.approx(two["after"]["test"]["loss"], rel=1e-5)
    assert done.stderr.count("Training model.onnx") == 1  # one of them speaks
    assert not Path("two.onnx.ckpt").exists()


def test_torchrun_starts_them_as_well(folder: Path) -> None:
    assert call(f"{LINE} {PLAIN} -o one.onnx").code == 0
    words = [*LINE.split(), *PLAIN.split(), "-o", "two.onnx", "--devices", "2"]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = start([*run, "-m", "conet_onnx", *words])
    assert done.returncode == 0, done.stderr
    assert apart("one.onnx", "two.onnx") < 1e-6
