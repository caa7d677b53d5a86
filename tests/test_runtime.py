"""onnxruntime sessions: providers that really start, silence, seeded inputs, every intermediate tensor."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from conet_onnx import runtime
from conet_onnx.errors import ModelError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.runtime import available, random_feeds, resolve, run, run_all, session


def graph(*nodes, inputs=(("x", TensorProto.FLOAT, (2, 3)),), outputs=("y",), initializers=()) -> Graph:
    made = helper.make_graph(
        [helper.make_node(op, reads, makes) for op, reads, makes in nodes],
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        list(initializers),
    )
    return Graph(helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))


def chain(**kwargs) -> Graph:
    """y = relu(x); z = exp(y): z alone is an output."""
    return graph(("Relu", ["x"], ["y"]), ("Exp", ["y"], ["z"]), outputs=("z",), **kwargs)


X = np.array([[-1, 0, 1], [2, -2, 0.5]], np.float32)


class TestProviders:
    def test_the_cpu_always_starts_and_comes_last(self):
        assert available()[-1] == "cpu"

    def test_auto_is_the_first_that_starts(self):
        assert resolve("auto") == available()[0]
        assert session(chain(), provider="auto").get_providers()[0] == runtime.PROVIDERS[available()[0]]

    def test_a_listed_provider_that_falls_back_to_the_cpu_does_not_start(self, monkeypatch):
        class Fallen:
            def run(self, *_):
                return []

            def get_providers(self):
                return ["CPUExecutionProvider"]

        monkeypatch.setattr(runtime, "_listed", lambda: ("CUDAExecutionProvider", "CPUExecutionProvider"))
        monkeypatch.setattr(runtime, "_starts", runtime._starts.__wrapped__)
        monkeypatch.setattr(runtime, "_cuda_devices", lambda: 1)
        monkeypatch.setattr(runtime, "_create", lambda *_: Fallen())
        assert available() == ("cpu",)
        assert resolve("auto") == "cpu"

    def test_without_a_cuda_device_cuda_is_not_even_tried(self, monkeypatch):
        tried = []
        monkeypatch.setattr(runtime, "_cuda_devices", lambda: 0)
        monkeypatch.setattr(runtime, "_create", lambda *args: tried.append(args))
        assert not runtime._starts.__wrapped__("cuda")
        assert not runtime._starts.__wrapped__("tensorrt")
        assert not tried

    def test_exact_auto_passes_over_providers_that_round(self, monkeypatch):
        monkeypatch.setattr(runtime, "_listed", lambda: tuple(runtime.PROVIDERS.values()))
        monkeypatch.setattr(runtime, "_starts", lambda name: True)
        assert resolve("auto") == "tensorrt"
        assert resolve("auto", exact=True) == "cuda"

    def test_a_provider_that_does_not_start_is_a_usage_error_that_names_those_that_do(self, monkeypatch):
        monkeypatch.setattr(runtime, "_listed", lambda: ("CoreMLExecutionProvider", "CPUExecutionProvider"))
        monkeypatch.setattr(runtime, "_starts", lambda name: name == "cpu")
        with pytest.raises(UsageError, match=r"'coreml' does not start here; these do: cpu\."):
            session(chain(), provider="coreml")
        with pytest.raises(UsageError, match="'cuda' does not start here"):
            session(chain(), provider="cuda")

    def test_an_unknown_provider_is_a_usage_error(self):
        with pytest.raises(UsageError, match="Unknown provider 'gpu'"):
            session(chain(), provider="gpu")

    def test_trying_providers_prints_nothing(self):
        script = (
            "import conet_onnx.runtime as r; r._cuda_devices = lambda: 1\n"  # so that all of them are really tried
            "assert r.available()[-1] == 'cpu'"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_importing_the_module_does_not_import_onnxruntime(self):
        script = "import sys, conet_onnx.runtime; sys.exit('onnxruntime' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


class TestSession:
    @pytest.mark.parametrize("kind", ["graph", "proto", "bytes", "path", "text"])
    @pytest.mark.parametrize("more", [(), ("y",)])
    def test_every_kind_of_model_starts(self, kind, more, tmp_path):
        made = chain()
        file = tmp_path / "m.onnx"
        made.save(file)
        model = {
            "graph": made,
            "proto": made.model,
            "bytes": made.model.SerializeToString(),
            "path": file,
            "text": str(file),
        }[kind]
        started = session(model, provider="cpu", outputs=more)
        assert [value.name for value in started.get_outputs()] == ["z", *more]

    def test_an_output_asked_for_twice_or_already_there_is_returned_once(self):
        started = session(chain(), provider="cpu", outputs=["y", "z", "y"])
        assert [value.name for value in started.get_outputs()] == ["z", "y"]

    def test_the_model_is_left_as_it_was(self):
        made = chain()
        before = made.model.SerializeToString()
        session(made, provider="cpu", outputs=["y"])
        assert made.model.SerializeToString() == before

    def test_threads_bound_the_operators_threads(self):
        assert session(chain(), provider="cpu", threads=1).get_session_options().intra_op_num_threads == 1
        with pytest.raises(UsageError, match="at least 1"):
            session(chain(), threads=0)

    def test_a_model_too_large_for_protobuf_goes_through_a_file(self, monkeypatch):
        weight = helper.make_tensor("w", TensorProto.FLOAT, (3,), [1, 2, 3])
        made = graph(("Add", ["x", "w"], ["t"]), ("Relu", ["t"], ["y"]), initializers=[weight])
        sources = []
        create = runtime._create
        monkeypatch.setattr(runtime, "_create", lambda source, *rest: sources.append(source) or create(source, *rest))
        monkeypatch.setattr(runtime, "PROTOBUF_LIMIT", runtime.MARGIN + 11)  # the weight has 12 bytes
        found = run(made, {"x": X}, ["t", "y"], provider="cpu")
        assert isinstance(sources[0], str)
        assert np.array_equal(found["t"], X + np.array([1, 2, 3], np.float32))

    @pytest.mark.parametrize("bad", [b"", b"not a model", b"\x08\x08"])
    def test_corrupt_bytes_are_one_line(self, bad, capfd):
        with pytest.raises(ModelError, match="does not load in onnxruntime") as caught:
            session(bad, provider="cpu")
        assert "\n" not in str(caught.value)
        assert capfd.readouterr() == ("", "")

    def test_corrupt_and_missing_files_are_named(self, tmp_path):
        file = tmp_path / "m.onnx"
        with pytest.raises(ModelError, match=r"m\.onnx: no such file"):
            session(file, provider="cpu")
        file.write_bytes(b"not a model")
        with pytest.raises(ModelError, match=r"m\.onnx does not load"):
            session(file, provider="cpu")

    def test_an_unknown_operator_is_a_model_error_without_codes(self):
        with pytest.raises(ModelError, match="NoSuchOp") as caught:
            session(graph(("NoSuchOp", ["x"], ["y"])), provider="cpu")
        assert "ONNXRuntimeError" not in str(caught.value)

    def test_external_data_outside_the_models_folder_is_refused(self, tmp_path):
        np.ones(3, np.float32).tofile(tmp_path / "secret.bin")
        weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", "12")):
            weight.external_data.add(key=key, value=value)
        made = graph(("Add", ["x", "w"], ["y"]), initializers=[weight])
        folder = tmp_path / "inner"
        folder.mkdir()
        (folder / "m.onnx").write_bytes(made.model.SerializeToString())
        for more in ((), ("y",)):
            with pytest.raises(ModelError):
                session(folder / "m.onnx", provider="cpu", outputs=more)


class TestRun:
    def test_outputs_come_by_name(self):
        found = run(chain(), {"x": X}, provider="cpu")
        assert list(found) == ["z"]
        assert np.allclose(found["z"], np.exp(np.maximum(X, 0)))

    def test_intermediate_tensors_come_in_the_order_asked_for(self):
        found = run(chain(), {"x": X}, ["y", "z"], provider="cpu")
        assert list(found) == ["y", "z"]
        assert np.array_equal(found["y"], np.maximum(X, 0))

    def test_run_all_returns_every_tensor_that_a_node_makes_even_fused_ones(self):
        weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 3, 1, 1), np.arange(12.0))
        made = graph(
            ("Conv", ["x", "w"], ["c"]),
            ("Relu", ["c"], ["r"]),  # fused into the convolution by default
            ("Identity", ["w"], ["i"]),  # folded by default
            ("Identity", ["r"], ["y"]),
            inputs=[("x", TensorProto.FLOAT, (1, 3, 2, 2))],
            initializers=[weight],
        )
        found = run_all(made, random_feeds(made))
        assert list(found) == ["c", "r", "i", "y"]
        assert found["c"].min() < 0
        assert np.array_equal(found["r"], np.maximum(found["c"], 0))
        assert np.array_equal(found["i"], made.array("w"))

    @pytest.mark.parametrize("feeds", [{}, {"x": X[:1]}, {"x": X.astype(np.float64)}, {"x": X, "q": X}])
    def test_feeds_that_do_not_fit_are_a_model_error_of_one_line(self, feeds, capfd):
        with pytest.raises(ModelError, match="does not run in onnxruntime") as caught:
            run(chain(), feeds, provider="cpu")
        assert "\n" not in str(caught.value)
        assert capfd.readouterr() == ("", "")

    def test_a_node_that_fails_at_run_time_prints_nothing(self, capfd):
        target = helper.make_tensor("s", TensorProto.INT64, (2,), [4, -1])
        made = graph(("Reshape", ["x", "s"], ["y"]), inputs=[("x", TensorProto.FLOAT, ("n",))], initializers=[target])
        with pytest.raises(ModelError, match="cannot be reshaped"):
            run(made, {"x": np.zeros(6, np.float32)}, provider="cpu")
        assert capfd.readouterr() == ("", "")


class TestRandomFeeds:
    def test_the_same_seed_gives_the_same_inputs(self):
        assert np.array_equal(random_feeds(chain(), 1)["x"], random_feeds(chain(), 1)["x"])
        assert not np.array_equal(random_feeds(chain(), 1)["x"], random_feeds(chain(), 2)["x"])

    def test_the_first_symbol_is_two_or_the_batch_and_others_are_equal_where_their_names_are(self):
        inputs = [("x", TensorProto.FLOAT, ("n", "h", "h", 7)), ("m", TensorProto.FLOAT, ("n", "h"))]
        made = graph(("Relu", ["x"], ["y"]), inputs=inputs)
        assert random_feeds(made)["x"].shape == (2, 224, 224, 7)
        assert random_feeds(made, batch=5)["m"].shape == (5, 224)

    def test_sizes_given_at_loading_are_used(self):
        plain = graph(("Relu", ["x"], ["y"]), inputs=[("x", TensorProto.FLOAT, ("n", "h"))])
        made = Graph(plain.model, input_shapes={"x": (3, 9)})
        assert random_feeds(made)["x"].shape == (3, 9)
        assert random_feeds(made, batch=1)["x"].shape == (1, 9)

    def test_a_size_given_for_one_input_holds_for_its_symbol_everywhere(self):
        inputs = [("x", TensorProto.FLOAT, ("n", "h")), ("m", TensorProto.FLOAT, ("n", "h"))]
        plain = graph(("Relu", ["x"], ["y"]), inputs=inputs)
        assert random_feeds(Graph(plain.model, input_shapes={"x": (3, 9)}))["m"].shape == (3, 9)

    @pytest.mark.parametrize(
        ("kind", "dtype", "low", "high"),
        [
            (TensorProto.FLOAT, np.float32, -6, 6),
            (TensorProto.FLOAT16, np.float16, -6, 6),
            (TensorProto.DOUBLE, np.float64, -6, 6),
            (TensorProto.UINT8, np.uint8, 0, 255),
            (TensorProto.INT64, np.int64, 0, 1),
            (TensorProto.INT8, np.int8, 0, 1),
            (TensorProto.BOOL, np.bool_, 0, 1),
        ],
    )
    def test_inputs_have_the_declared_type_and_vary(self, kind, dtype, low, high):
        made = graph(("Identity", ["x"], ["y"]), inputs=[("x", kind, (40, 5))])
        x = random_feeds(made)["x"]
        assert x.dtype == dtype
        assert low <= x.min() < x.max() <= high
        assert np.array_equal(run(made, {"x": x}, provider="cpu")["y"], x)

    def test_strings_are_strings(self):
        made = graph(("Identity", ["x"], ["y"]), inputs=[("x", TensorProto.STRING, (2, 3))])
        assert all(isinstance(s, str) for s in run(made, random_feeds(made), provider="cpu")["y"].ravel())

    def test_an_input_that_is_no_tensor_is_refused(self):
        made = chain()
        made.model.graph.input.add(name="s").type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
        with pytest.raises(UsageError, match="'s' is not a tensor"):
            random_feeds(Graph(made.model))


def test_messages_lose_onnxruntimes_codes_and_newlines():
    error = RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got\n three  words")
    assert runtime._first_line(error) == "Got three words"
    assert re.fullmatch(r"\w+", runtime._first_line(RuntimeError()))
