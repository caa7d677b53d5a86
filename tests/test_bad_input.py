"""Bad input gets one clear line on stderr, the contract's exit code, no traceback and no half-written file."""

from __future__ import annotations

import copy
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_support import Result, call, listing, only_line, save, small_model
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.errors import ModelError, OutputError
from conet_onnx.loading import load

FILE_SIZE = 1000  # bytes: the largest file that a process may write in the test of a full disk


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder with a good model in it, and the current one."""
    place = tmp_path / "work"
    place.mkdir()
    save(small_model(), place / "good.onnx")
    monkeypatch.chdir(place)
    return place


def refused(folder: Path, code: int, line: str, *more: str) -> str:
    """Call; check the exit code, the single line, stdout and that no file came or changed. Give back the line."""
    before = listing(folder)
    result = call(line, *more)
    assert (result.code, result.out) == (code, ""), result
    assert listing(folder) == before
    return only_line(result)


# Every command that reads a model, with the model in the place of MODEL.
READERS = {
    "analyze": "analyze MODEL --json out.json",
    "resize": "resize MODEL -o out.onnx --scale 0.5 --plan out.json",
    "search": "search MODEL --data digits --budget macs=0.5 --out run",
    "evaluate": "evaluate MODEL --data digits --json out.json",
    "bench": "bench MODEL --json out.json",
    "bench second": "bench good.onnx MODEL --json out.json",
    "verify": "verify MODEL good.onnx --plan plan.json",
    "verify second": "verify good.onnx MODEL --plan plan.json",
}


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, folder: Path) -> Callable[[str], str]:
    """A command that must refuse the model that it is given, with exit code 3."""
    (folder / "plan.json").write_text("{}")
    return lambda model: refused(folder, 3, READERS[request.param].replace("MODEL", model))


class TestModelFile:
    def test_missing(self, reader: Callable[[str], str]) -> None:
        assert "Cannot read missing.onnx: No such file or directory" in reader("missing.onnx")

    def test_a_folder(self, reader: Callable[[str], str], folder: Path) -> None:
        (folder / "sub").mkdir()
        assert "Cannot read sub: Is a directory" in reader("sub")

    def test_empty(self, reader: Callable[[str], str], folder: Path) -> None:
        (folder / "empty.onnx").touch()
        assert "empty.onnx is empty" in reader("empty.onnx")

    def test_truncated(self, reader: Callable[[str], str], folder: Path) -> None:
        whole = (folder / "good.onnx").read_bytes()
        (folder / "half.onnx").write_bytes(whole[: len(whole) // 2])
        assert "half.onnx is not an ONNX model, or it is truncated" in reader("half.onnx")

    @pytest.mark.parametrize(
        "content",
        [b"hello, world\n", b'{"a": 1}', b"\x89PNG\r\n\x1a\n" + bytes(range(256)), bytes(100), b"PK\x03\x04\0"],
    )
    def test_not_onnx(self, folder: Path, content: bytes) -> None:
        (folder / "other.onnx").write_bytes(content)
        assert "other.onnx is not an ONNX model" in refused(folder, 3, "analyze", "other.onnx")

    def test_no_prefix_of_a_model_is_taken_for_a_model(self, folder: Path) -> None:
        whole = (folder / "good.onnx").read_bytes()
        part = folder / "part.onnx"
        for length in range(len(whole)):
            part.write_bytes(whole[:length])
            with pytest.raises(ModelError):
                load(part)

    def test_without_weights(self, reader: Callable[[str], str], folder: Path) -> None:
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "bare", [x], [y])
        save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]), folder / "bare.onnx")
        assert "bare.onnx holds no weights" in reader("bare.onnx")


def with_bad(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = small_model()
    change(model)
    return model


INVALID: dict[str, Callable[[onnx.ModelProto], object]] = {
    "a node reads what nothing makes": lambda m: m.graph.node[2].input.__setitem__(0, "nowhere"),
    "an operator that no opset has": lambda m: setattr(m.graph.node[0], "op_type", "Convolve"),
    "no opset": lambda m: m.ClearField("opset_import"),
    "a version of the future": lambda m: setattr(m, "ir_version", 99),
    "two nodes make one value": lambda m: m.graph.node[1].output.__setitem__(0, "a"),
    "less data than the shape needs": lambda m: setattr(m.graph.initializer[0], "raw_data", b"1234"),
    "a negative size": lambda m: m.graph.initializer[0].dims.__setitem__(0, -3),
    "an output that nothing makes": lambda m: setattr(m.graph.output[0], "name", "nothing"),
    "a node before what it reads": lambda m: m.graph.node.insert(0, copy.deepcopy(m.graph.node[3])),
    "an element type that ONNX has not": lambda m: setattr(m.graph.initializer[0], "data_type", 99),
    "an input type that ONNX has not": lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99),
    "an input type that the operator has not": lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 7),
}


class TestInvalidModel:
    def test_every_command_refuses_what_the_checker_refuses(self, reader: Callable[[str], str], folder: Path) -> None:
        save(with_bad(INVALID["a node reads what nothing makes"]), folder / "bad.onnx")
        assert "bad.onnx is not a valid ONNX model" in reader("bad.onnx")

    @pytest.mark.parametrize("fault", INVALID)
    def test_each_fault_is_told(self, folder: Path, fault: str) -> None:
        save(with_bad(INVALID[fault]), folder / "bad.onnx")
        assert "bad.onnx" in refused(folder, 3, "analyze", "bad.onnx")

    def test_sizes_that_conflict_are_no_internal_error(self, folder: Path) -> None:
        for name in ("fc.w", "c1.b"):
            save(with_bad(lambda m, name=name: m.graph.node[0].input.__setitem__(1, name)), folder / "bad.onnx")
            result = call("analyze", "bad.onnx")
            assert result.code in (0, 3)
            assert "internal error" not in result.err


def external(**entries: str) -> tuple[onnx.ModelProto, bytes]:
    """The small model with c2.w outside of the file, described by these entries, and the data."""
    model = small_model()
    tensor = next(t for t in model.graph.initializer if t.name == "c2.w")
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return model, data


class TestExternalData:
    def test_inside_the_folder_it_is_read(self, folder: Path) -> None:
        model, data = external(location="c2.bin")
        save(model, folder / "m.onnx")
        (folder / "c2.bin").write_bytes(data)
        assert call("analyze", "m.onnx").code == 0

    def test_missing(self, reader: Callable[[str], str], folder: Path) -> None:
        save(external(location="gone.bin")[0], folder / "m.onnx")
        assert "external data 'gone.bin' (for 'c2.w') is missing" in reader("m.onnx")

    @pytest.mark.parametrize(
        "entries",
        [
            {"location": "c2.bin", "offset": "x"},
            {"location": "c2.bin", "offset": "-4"},
            {"location": "c2.bin", "offset": "400"},
            {"location": "c2.bin", "length": "many"},
            {"location": "c2.bin", "length": "-1"},
            {"location": "c2.bin", "length": "8"},
            {"location": "short.bin"},
            {"location": "c2.bin/"},
            {"location": "c2.bin\0"},
            {"location": ""},
            {},
        ],
    )
    def test_described_wrongly(self, folder: Path, entries: dict[str, str]) -> None:
        model, data = external(**entries)
        save(model, folder / "m.onnx")
        (folder / "c2.bin").write_bytes(data)
        (folder / "short.bin").write_bytes(data[:100])
        assert "m.onnx" in refused(folder, 3, "analyze", "m.onnx")

    @pytest.mark.parametrize("way", ["relative", "absolute", "through a folder", "link", "linked folder"])
    @pytest.mark.parametrize("command", ["analyze m.onnx", "bench m.onnx", "bench good.onnx m.onnx"])
    def test_outside_the_folder_it_is_refused_and_never_opened(self, folder: Path, way: str, command: str) -> None:
        outside = folder.parent / "outside"
        outside.mkdir()
        os.mkfifo(outside / "c2.bin")  # whoever opens it waits for ever
        (folder / "sub").mkdir()
        (folder / "link.bin").symlink_to(outside / "c2.bin")
        (folder / "linked").symlink_to(outside)
        location = {
            "relative": "../outside/c2.bin",
            "absolute": str(outside / "c2.bin"),
            "through a folder": "sub/../../outside/c2.bin",
            "link": "link.bin",
            "linked folder": "linked/c2.bin",
        }[way]
        save(external(location=location)[0], folder / "m.onnx")
        made = subprocess.run(
            [sys.executable, "-m", "conet_onnx", *command.split()],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        line = only_line(Result(made.returncode, made.stdout, made.stderr))
        assert (made.returncode, made.stdout) == (3, "")
        assert "outside the model's folder; it was not read" in line

    def test_outside_named_by_a_function_it_is_refused_and_never_opened(self, folder: Path) -> None:
        os.mkfifo(folder.parent / "k.bin")
        constant = TensorProto(name="k", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        constant.external_data.add(key="location", value="../k.bin")
        nodes = [helper.make_node("Constant", [], ["k"], value=constant), helper.make_node("Mul", ["a", "k"], ["b"])]
        model = small_model()
        model.functions.append(helper.make_function("own", "F", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)]))
        model.opset_import.append(helper.make_opsetid("own", 1))
        model.graph.node[1].op_type, model.graph.node[1].domain = "F", "own"
        save(model, folder / "m.onnx")
        program = [sys.executable, "-m", "conet_onnx", "analyze", "m.onnx"]
        made = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
        only_line(Result(made.returncode, made.stdout, made.stderr))
        assert made.returncode == 3


# Every command that writes a file, with the file in the place of OUT.
WRITERS = {
    "resize": "resize good.onnx -o OUT --scale 0.5",
    "plan": "resize good.onnx -o new.onnx --scale 0.5 --plan OUT",
    "analyze": "analyze good.onnx --json OUT",
    "evaluate": "evaluate good.onnx --data digits --mean 0 --std 1 --json OUT",
    "bench": "bench good.onnx --json OUT",
}


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """A command that writes to the given place."""
    return lambda out: WRITERS[request.param].replace("OUT", out)


class TestOutput:
    @pytest.mark.parametrize("out", ["good.onnx/out", "no/such/folder/out", "sub", "pipe"])
    def test_a_place_that_cannot_hold_a_file(self, folder: Path, writer: Callable[[str], str], out: str) -> None:
        (folder / "sub").mkdir()
        os.mkfifo(folder / "pipe")
        assert f"Cannot write {out}" in refused(folder, 2, writer(out))

    def test_a_pipe_or_a_device_is_never_replaced_by_a_file(self, folder: Path) -> None:
        os.mkfifo(folder / "pipe")
        (folder / "link").symlink_to("pipe")
        for out in ("pipe", "link"):
            with pytest.raises(OutputError, match="no ordinary file"):
                load(folder / "good.onnx").save(folder / out)
        assert (folder / "pipe").is_fifo()

    def test_a_link_stays_one(self, folder: Path) -> None:
        (folder / "link.onnx").symlink_to("target.onnx")
        assert call("resize good.onnx -o link.onnx --scale 1").code == 0
        assert (folder / "link.onnx").is_symlink()
        assert (folder / "target.onnx").read_bytes() == (folder / "good.onnx").read_bytes()

    def test_a_folder_without_permission(
        self, folder: Path, writer: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Permissions do not bind root, who may run this test.
        def denied(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("conet_onnx.files.tempfile.mkstemp", denied)
        assert "Cannot write out: Permission denied" in refused(folder, 2, writer("out"))

    def test_a_full_disk_when_the_bytes_reach_it(
        self, folder: Path, writer: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("conet_onnx.files.os.fsync", full)
        assert "No space left on device" in refused(folder, 2, writer("out"))

    def test_a_disk_that_fills_up_while_writing(self, folder: Path) -> None:
        before = listing(folder)
        made = subprocess.run(
            [
                sys.executable,
                "-m",
                "conet_onnx",
                *["resize", "good.onnx", "-o", "out.onnx", "--scale", "0.9", "--plan", "plan.json"],
            ],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE)),
        )
        line = only_line(Result(made.returncode, made.stdout, made.stderr))
        assert made.returncode == 2
        assert "Cannot write" in line
        assert "File too large" in line
        assert listing(folder) == before

    def test_stdout_that_is_full(self, folder: Path) -> None:
        with open("/dev/full", "w") as full:
            made = subprocess.run(
                [sys.executable, "-m", "conet_onnx", "analyze", "good.onnx", "--json", "-"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert made.returncode == 2
        assert "No space left on device" in only_line(Result(made.returncode, "", made.stderr))

    @pytest.mark.parametrize(
        "places", ["-o good.onnx", "-o ./good.onnx", "-o new.onnx --plan good.onnx", "-o new.onnx --plan ./new.onnx"]
    )
    def test_resize_never_overwrites_its_own_files(self, folder: Path, places: str) -> None:
        assert "different files" in refused(folder, 2, f"resize good.onnx --scale 0.5 {places}")

    def test_a_file_that_stands_there_survives_a_failure(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "out.onnx").write_bytes(b"precious")
        (folder / "plan.json").write_bytes(b"precious too")

        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("conet_onnx.files.os.fsync", full)
        refused(folder, 2, "resize good.onnx -o out.onnx --scale 0.5 --plan plan.json")


def resize(folder: Path, code: int, line: str = "", *more: str) -> str:
    return refused(folder, code, f"resize good.onnx -o out.onnx {line}", *more)


class TestWidths:
    @pytest.mark.parametrize(
        ("widths", "expected"),
        [
            ("w99=4", "Unknown width group 'w99'"),
            ("c1.w=4", "Did you mean w0"),
            ("W0=4", "Did you mean w0"),
            ("w0=0", "below 1"),
            ("w0=-3", "below 1"),
            ("w0=many", "not a whole number"),
            ("w0=4.5", "not a whole number"),
            ("w0=nan", "not a whole number"),
            ("w0=", "not a whole number"),
            ("w0=4,w0=5", "twice"),
            ("w0=4,", "is not ID=N"),
            ("=4", "is not ID=N"),
            ("nothing.json", "cannot read nothing.json"),
        ],
    )
    def test_on_the_command_line(self, folder: Path, widths: str, expected: str) -> None:
        assert expected in resize(folder, 2, "--widths", widths)

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ('{"w99": 4}', "Unknown width group 'w99'"),
            ('{"w0": 0}', "below 1"),
            ('{"w0": "4"}', "not a whole number"),
            ('{"w0": 4.5}', "not a whole number"),
            ('{"w0": true}', "not a whole number"),
            ('{"w0": null}', "not a whole number"),
            ('{"w0": NaN}', "not a whole number"),
            ('{"w0": 4, "w0": 5}', "twice"),
            ('["w0"]', "should hold an object"),
            ("w0: 4", "is not JSON"),
            ("", "is not JSON"),
            ("\xff", "is not JSON"),
        ],
    )
    def test_in_a_file(self, folder: Path, content: str, expected: str) -> None:
        (folder / "widths.json").write_bytes(content.encode("latin-1"))
        assert expected in resize(folder, 2, "--widths", "widths.json")

    @pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "half", "", "1e999"])
    def test_a_scale_that_is_no_number_above_zero(self, folder: Path, scale: str) -> None:
        assert "is not a number above zero" in resize(folder, 2, "--scale", scale)

    @pytest.mark.parametrize("arguments", ["", "--scale 0.5 --widths w0=3", "--scale 0.5 --budget macs=0.5"])
    def test_not_exactly_one_request(self, folder: Path, arguments: str) -> None:
        assert "exactly one of" in resize(folder, 2, arguments)

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ("--scale 0.5 --exact --inexact", "take one of the two"),
            ("--widths w0=3 --multiple 8", "--multiple rounds"),
            ("--scale 0.5 --multiple 0", "--multiple"),
            ("--scale 0.5 --criterion best", "--criterion"),
            ("--scale 0.5 --transfer teleport", "teleport"),
            ("--scale 0.5 --transfer least-squares", "give it --data D"),
            ("--scale 0.5 --data digits --no-recalibrate", "--transfer slice --no-recalibrate has no use for --data"),
            ("--scale 0.5 --criterion taylor", "--criterion taylor is measured on training samples: give it --data D"),
            ("--scale 0.5 --recalibrate", "give it --data D"),
            ("--scale 0.5 --allocation uniform", "--allocation is how --budget"),
            ("--scale 0.5 --transfer svd --data digits --no-recalibrate", "has no use for --data"),
            ("--scale 0.5 --samples 9", "--samples is about --data D"),
            ("--scale 0.5 --crop 8", "--crop is about --data D"),
            ("--scale 0.5 --mean 0 --std 1", "--mean is about --data D"),
            ("--scale 0.5 --transfer least-squares --data digits --mean 0", "--mean and --std go together"),
            ("--scale 0.5 --transfer least-squares --data digits --samples 0", "--samples"),
            ("--scale 0.5 --freeze nobody", "nobody"),
            ("--scale 0.5 --input-shape z=1x1x8x8", "no input 'z'"),
            ("--scale 0.5 --input-shape x=1x3x8x8", "'x'"),
            ("--scale 0.5 --provider abacus", "abacus"),
        ],
    )
    def test_an_option_that_cannot_be(self, folder: Path, arguments: str, expected: str) -> None:
        assert expected in resize(folder, 2, arguments)


class TestBudget:
    @pytest.mark.parametrize("budget", ["macs=0.5%", "flops=0.5", "macs", "macs=0", "macs=-1", "macs=nan", "macs=40"])
    @pytest.mark.parametrize("command", ["resize good.onnx -o out.onnx", "search good.onnx --data digits --out run"])
    def test_that_is_none(self, folder: Path, command: str, budget: str) -> None:
        assert "budget" in refused(folder, 2, command, "--budget", budget)

    @pytest.mark.parametrize("budget", ["latency=5MB", "latency=50", "latency=fast", "latency=0"])
    @pytest.mark.parametrize("command", ["resize good.onnx -o out.onnx", "search good.onnx --data digits --out run"])
    def test_of_latency_that_is_none(self, folder: Path, command: str, budget: str) -> None:
        assert "latency" in refused(folder, 2, command, "--budget", budget)

    @pytest.mark.parametrize("command", ["resize good.onnx -o out.onnx", "search good.onnx --data digits --out run"])
    def test_that_cannot_be_met_names_the_nearest_that_can(self, folder: Path, command: str) -> None:
        line = refused(folder, 4, command, "--budget", "macs=0.0001")
        nearest = next(word for word in line.replace(",", " ").split() if word.startswith("macs="))
        assert call("resize", "good.onnx", "-o", "met.onnx", "--budget", nearest).code == 0


def npz(folder: Path, *, shape: tuple[int, ...] = (1, 8, 8), labels: int = 10) -> str:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("test", 20)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % labels
    np.savez(folder / "data.npz", **arrays)
    return "data.npz"


@pytest.fixture(params=["evaluate good.onnx --data DATA", "search good.onnx --budget macs=0.5 --data DATA --out run"])
def consumer(request: pytest.FixtureRequest, folder: Path) -> Callable[[str], str]:
    """A command that must refuse its data with exit code 3."""
    return lambda data: refused(folder, 3, request.param.replace("DATA", data))


class TestData:
    @pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28)])
    def test_of_another_shape(self, consumer: Callable[[str], str], folder: Path, shape: tuple[int, ...]) -> None:
        line = consumer(npz(folder, shape=shape))
        assert "x".join(map(str, shape)) in line
        assert "1x8x8" in line

    def test_with_labels_out_of_range(self, consumer: Callable[[str], str], folder: Path) -> None:
        line = consumer(npz(folder, labels=11))
        assert "label 10" in line
        assert "0..9" in line

    @pytest.mark.parametrize("data", ["nowhere", "empty", "text.txt", "broken.npz", "no.such.module:function"])
    def test_that_cannot_be_read(self, consumer: Callable[[str], str], folder: Path, data: str) -> None:
        (folder / "empty").mkdir()
        (folder / "text.txt").write_text("hello")
        (folder / "broken.npz").write_bytes(b"PK\x03\x04 not really")
        consumer(data)

    @pytest.mark.parametrize("command", ["evaluate good.onnx", "search good.onnx --budget macs=0.5 --out run"])
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ("--mean 0.5", "go together"),
            ("--std 0.5", "go together"),
            ("--mean half --std 1", "list of numbers"),
            ("--mean 0.5,nan --std 1,1", "list of numbers"),
        ],
    )
    def test_a_normalisation_that_is_none(self, folder: Path, command: str, arguments: str, expected: str) -> None:
        assert expected in refused(folder, 2, f"{command} --data digits {arguments}")


class TestPlan:
    @pytest.mark.parametrize(
        "content", ["", "{", "[]", "{}", '{"format": "other/1"}', '{"format": "conet-onnx-plan/1"}']
    )
    def test_that_is_none(self, folder: Path, content: str) -> None:
        (folder / "plan.json").write_text(content)
        refused(folder, 2, "verify", "good.onnx", "good.onnx", "--plan", "plan.json")

    def test_that_is_missing(self, folder: Path) -> None:
        assert "cannot read plan.json" in refused(folder, 2, "verify", "good.onnx", "good.onnx", "--plan", "plan.json")

    def test_of_another_model_proves_nothing(self, folder: Path) -> None:
        save(small_model(seed=1), folder / "other.onnx")
        assert call("resize good.onnx -o out.onnx --scale 0.5 --plan plan.json").code == 0
        refused(folder, 5, "verify other.onnx out.onnx --plan plan.json")

    def test_that_the_resized_model_does_not_follow(self, folder: Path) -> None:
        assert call("resize good.onnx -o out.onnx --scale 0.5 --plan plan.json").code == 0
        model = onnx.load(folder / "out.onnx")
        weight = next(t for t in model.graph.initializer if t.name == "c2.w")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 1e-3, "c2.w"))
        save(model, folder / "out.onnx")
        assert "c2.w" in refused(folder, 5, "verify good.onnx out.onnx --plan plan.json")


class TestVerification:
    def test_what_is_not_proved_is_not_written(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from conet_onnx import transfer

        honest = transfer.rewrite

        def lying(graph, plan):
            made = honest(graph, plan)
            return made.with_arrays({"fc.b": made.array("fc.b") + 1})

        monkeypatch.setattr(transfer, "rewrite", lying)
        resize(folder, 5, "--scale", "0.5", "--plan", "plan.json")


class TestRun:
    def test_a_folder_without_a_search_has_no_report(self, folder: Path) -> None:
        assert "not a search's folder" in refused(folder, 2, "report", ".")

    def test_a_damaged_record_has_no_report(self, folder: Path) -> None:
        (folder / "run.json").write_text(json.dumps({"format": "conet-onnx-search/1"}))
        refused(folder, 3, "report", ".")
