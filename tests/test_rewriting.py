"""A rewritten model is the user's own graph with other numbers in it; nothing else in the file moves."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import onnx
import oracles
import pytest
from onnx import TensorProto, helper, numpy_helper
from strategies import Builder

from conet_onnx.analysis import analyze
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.planning import Selection, Take, plan, select
from conet_onnx.rewriting import rewrite

BFLOAT16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)


def builder(opset: int = 17) -> Builder:
    b = Builder(random.Random(3), opset=opset, batch=2)
    b.tidy = True
    return b


def two_convs() -> onnx.ModelProto:
    """conv of 6 channels, Relu, conv of 2."""
    b = builder()
    h = b.conv(b.input("x", (2, 3, 4, 4)), 6)
    return b.model([b.conv(b.node("Relu", [h], (2, 6, 4, 4)), 2)])


def halved(model: onnx.ModelProto) -> tuple[Graph, Graph]:
    analysis = analyze(Graph(model))
    return analysis.graph, rewrite(analysis.graph, plan(analysis, dict.fromkeys(analysis.widths, 3)))


def prove(model: onnx.ModelProto, widths: list[int], tolerance: float = oracles.TOLERANCE) -> Graph:
    """The model has these widths, and both oracles hold; returns a shrunk model."""
    onnx.checker.check_model(model, full_check=True)
    analysis = analyze(Graph(model))
    assert sorted(w.size for w in analysis.widths.values()) == sorted(widths)
    rng = np.random.default_rng(5)
    for selections in (oracles.doubled(analysis, rng), oracles.single(analysis), oracles.shrunk(analysis, rng)):
        oracles.compare(analysis, selections, tolerance=tolerance)
        resized = rewrite(analysis.graph, select(analysis, selections))
        oracles.assert_valid(resized, analysis.graph)
        if selections:
            sizes = {n: len(s.indices) for n, s in selections.items()}
            assert tuple(analysis.costs.price(sizes)) == oracles.counted(resized)
    return resized


# What stays


def decorated() -> onnx.ModelProto:
    """A model in which every field that a resize has no business with is filled."""
    model = two_convs()
    model.producer_name, model.producer_version, model.domain = "somebody", "1.2", "example.org"
    model.model_version, model.doc_string = 42, "a model"
    helper.set_model_props(model, {"classes": "cat,dog", "mean": "0.5"})
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    graph = model.graph
    graph.doc_string = "a graph"
    graph.metadata_props.add(key="graph", value="property")
    for node in graph.node:
        node.doc_string = f"doc of {node.name}"
        node.metadata_props.add(key="node", value=node.name)
        for attribute in node.attribute:
            attribute.doc_string = "doc of an attribute"
    for value in (*graph.input, *graph.output):
        value.doc_string = f"doc of {value.name}"
        value.metadata_props.add(key="value", value=value.name)
        value.type.denotation = "IMAGE"
        value.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    for tensor in graph.initializer:
        tensor.doc_string = f"doc of {tensor.name}"
    graph.initializer.append(numpy_helper.from_array(np.arange(6, dtype=np.float32), "unused"))
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [3.0])
    indices = helper.make_tensor("sparse.indices", TensorProto.INT64, [1], [2])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [6]))
    inner = graph.node[0].output[0]
    info = helper.make_tensor_value_info(inner, TensorProto.FLOAT, ["batch", 6, 4, 4])
    info.doc_string = "doc of an inner value"
    info.type.tensor_type.shape.dim[1].denotation = "DATA_CHANNEL"
    graph.value_info.append(info)
    annotation = graph.quantization_annotation.add(tensor_name=inner)
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="unused")
    return model


def without_the_plan(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what a plan may change: sizes and data of weights, sizes of inner values."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if tensor.name != "unused":
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.ClearField("dims")
    for value in made.graph.value_info:
        value.type.tensor_type.shape.dim[1].ClearField("dim_value")
    return made


def test_every_field_outside_the_plan_is_kept():
    model = decorated()
    onnx.checker.check_model(model)
    before = model.SerializeToString(deterministic=True)
    source, resized = halved(model)
    assert source.model.SerializeToString(deterministic=True) == before
    assert without_the_plan(resized.model) == without_the_plan(model)
    assert resized.model.SerializeToString(deterministic=True) != before
    assert resized.model.graph.value_info[0].type.tensor_type.shape.dim[1].dim_value == 3
    assert resized.model.graph.value_info[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [list(t.dims) for t in resized.model.graph.initializer] == [[3, 3, 1, 1], [3], [2, 3, 1, 1], [2], [6]]


def test_weights_that_the_plan_does_not_list_keep_their_bytes():
    _, resized = halved(two_convs())
    source = two_convs()
    untouched = [t for t in source.graph.initializer if list(t.dims) == [2]]
    assert len(untouched) == 1
    assert untouched[0] in list(resized.model.graph.initializer)


def test_data_in_typed_fields_and_in_raw_bytes_are_both_kept_where_nothing_changes():
    model = two_convs()
    for tensor in model.graph.initializer:
        data = numpy_helper.to_array(tensor).ravel().tolist()
        tensor.ClearField("raw_data")
        tensor.float_data.extend(data)
    analysis = analyze(Graph(model))
    same = {n: Selection(np.arange(w.size), np.ones(w.size)) for n, w in analysis.widths.items()}
    assert rewrite(analysis.graph, select(analysis, same)).model == model
    prove(model, [6])


def test_the_source_may_be_rewritten_again_and_again():
    analysis = analyze(Graph(two_convs()))
    first = rewrite(analysis.graph, plan(analysis, {"w0": 2}))
    second = rewrite(analysis.graph, plan(analysis, {"w0": 5}))
    assert first.shape(first.nodes[0].outputs[0]) == (2, 2, 4, 4)
    assert second.shape(second.nodes[0].outputs[0]) == (2, 5, 4, 4)


# Unusual files


def test_weights_that_are_also_inputs_of_the_model():
    """IR version 3 lists every initializer as an input."""
    model = two_convs()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    model.ir_version = 3
    model.opset_import[0].version = 8
    resized = prove(model, [6])
    assert [d.dim_value for d in resized.model.graph.input[1].type.tensor_type.shape.dim] == [3, 3, 1, 1]


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_element_types_other_than_float32(dtype):
    b = builder()
    x = b.input("x", (2, 4))
    for o in (6, 5, 2):
        k = b.shapes[x][1]
        weight = b.weight((b.floats(k, o) / np.sqrt(k)).astype(dtype))
        x = b.node("Tanh", [b.node("MatMul", [x, weight], (2, o))], (2, o))
        x = b.node("Add", [x, b.weight(b.floats(o).astype(dtype))], (2, o))
    model = b.model([x])
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    resized = prove(model, [6, 5], tolerance=5e-3 if dtype == np.float16 else oracles.TOLERANCE)
    assert {t.data_type for t in resized.model.graph.initializer} == {kind}


def test_bfloat16_weights_are_sliced_bit_by_bit():
    model = two_convs()
    for tensor in model.graph.initializer:
        kept = numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            helper.make_tensor(tensor.name, TensorProto.BFLOAT16, kept.shape, kept.ravel().astype(np.float32).tolist())
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    analysis = analyze(Graph(model))
    kept = np.array([4, 1])
    resized = rewrite(analysis.graph, select(analysis, {"w0": Selection(kept, np.ones(2))}))
    name = model.graph.node[0].input[1]
    assert np.array_equal(resized.array(name).view(np.uint16), analysis.graph.array(name)[kept].view(np.uint16))


@pytest.mark.parametrize("name", ["same", ""])
def test_nodes_of_one_name_and_of_none(name):
    b = builder()
    h = b.conv(b.input("x", (2, 3, 4, 4)), 6)
    model = b.model([b.conv(y, 2) for y in b.split(h, 1, [2, 4])])
    _, expected = halved(model)
    for node in model.graph.node:
        node.name = name
    _, resized = halved(model)
    assert oracles.initializer_bytes(resized) == oracles.initializer_bytes(expected)
    if not name:  # onnxruntime runs no model with two nodes of one name
        prove(model, [2, 4])


def test_a_node_that_is_named_like_another_ones_output():
    """Integers go to the node that they are meant for."""
    b = builder()
    h = b.conv(b.input("x", (2, 3, 4, 4)), 6)
    left, right = b.split(h, 1, [2, 4])
    tail = b.slice(b.conv(right, 5), 1, 1, 4)
    model = b.model([b.conv(left, 2), b.conv(tail, 2)])
    nodes = {n.op_type: n for n in model.graph.node}
    nodes["Slice"].name = nodes["Split"].output[0]
    nodes["Split"].name = ""
    prove(model, [2, 4, 3])


def test_a_weight_that_is_an_output_of_the_model():
    model = two_convs()
    weight = model.graph.initializer[0]
    model.graph.output.append(helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    prove(model, [])


def test_a_bias_that_is_an_output_of_the_model():
    model = two_convs()
    bias = model.graph.initializer[1]
    model.graph.output.append(helper.make_tensor_value_info(bias.name, bias.data_type, list(bias.dims)))
    prove(model, [])


def test_a_bias_whose_alias_is_an_output_of_the_model():
    model = two_convs()
    model.graph.node.append(helper.make_node("Identity", [model.graph.initializer[1].name], ["alias"]))
    model.graph.output.append(helper.make_tensor_value_info("alias", TensorProto.FLOAT, [6]))
    prove(model, [6])


@pytest.mark.parametrize("what", ["bias", "weight"])
def test_a_constant_that_a_branch_reads_from_outside(what):
    model = two_convs()
    name = model.graph.initializer[what == "bias"].name
    shape = list(model.graph.initializer[what == "bias"].dims)
    bodies = []
    for op in ("Relu", "Neg"):
        out = helper.make_tensor_value_info(f"{op}.out", TensorProto.FLOAT, shape)
        bodies.append(helper.make_graph([helper.make_node(op, [name], [f"{op}.out"])], op, [], [out]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    model.graph.node.append(helper.make_node("If", ["flag"], ["extra"], then_branch=bodies[0], else_branch=bodies[1]))
    model.graph.output.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, shape))
    prove(model, [])


def test_an_inner_map_that_a_loop_reads_from_outside():
    model = two_convs()
    inner = model.graph.node[1].output[0]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["state", inner], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, 6, 4, 4]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [2, 6, 4, 4]),
        ],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(2), "trips"))
    loop = helper.make_node("Loop", ["trips", "", model.graph.node[0].output[0]], ["looped"], body=body)
    model.graph.node.append(loop)
    model.graph.output.append(helper.make_tensor_value_info("looped", TensorProto.FLOAT, [2, 6, 4, 4]))
    prove(model, [])


def test_an_operator_of_another_domain_freezes_what_it_reads():
    model = two_convs()
    model.graph.node[1].op_type, model.graph.node[1].domain = "Magic", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    info = helper.make_tensor_value_info(model.graph.node[1].output[0], TensorProto.FLOAT, [2, 6, 4, 4])
    model.graph.value_info.append(info)
    analysis = analyze(Graph(model))
    assert not analysis.widths
    assert "unknown op" in {f.reason.kind for f in analysis.frozen}


def test_names_of_copies_do_not_meet_names_that_are_taken():
    """A shared bias is given out under new names; here the first choice is somebody else's."""
    b = builder()
    x = b.input("x", (2, 3, 4, 4))
    bias = b.weight(b.floats(5))
    ends = [b.conv(b.conv(x, 5, bias=bias), 2) for _ in range(2)]
    model = b.model(ends)
    analysis = analyze(Graph(model))
    copies = rewrite(analysis.graph, plan(analysis, {"w0": 3}))
    added = {t.name for t in copies.model.graph.initializer} - {t.name for t in model.graph.initializer}
    assert len(added) == 1
    rename(model, model.graph.initializer[-1].name, added.pop())
    prove(model, [5, 5])


def test_a_new_constant_does_not_meet_a_name_that_is_taken():
    """A computed Reshape target becomes a constant; here its first choice of a name is somebody else's."""
    b = builder()
    h = b.conv(b.input("x", (2, 3, 4, 4)), 6)
    sizes = b.node("Shape", [h], (4,))
    target = b.node("Concat", [b.slice(sizes, 0, 0, 2), b.integers([16])], (3,), axis=0)
    flat = b.node("Reshape", [h, target], (2, 6, 16))
    model = b.model([b.node("MatMul", [b.transpose(flat, (0, 2, 1)), b.weight(b.floats(6, 2))], (2, 16, 2))])
    analysis = analyze(Graph(model))
    resized = rewrite(analysis.graph, plan(analysis, {"w0": 3}))
    added = {t.name for t in resized.model.graph.initializer} - {t.name for t in model.graph.initializer}
    assert len(added) == 1
    rename(model, model.graph.initializer[0].name, added.pop())
    prove(model, [6])


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for tensor in model.graph.initializer:
        tensor.name = new if tensor.name == old else tensor.name
    for node in model.graph.node:
        node.input[:] = [new if n == old else n for n in node.input]


# Refusals


def test_a_plan_for_another_model_is_refused():
    analysis = analyze(Graph(two_convs()))
    made = plan(analysis, {"w0": 3})
    with pytest.raises(UsageError, match="SHA-256"):
        rewrite(analysis.graph, replace(made, sha256="0" * 64))


def test_a_plan_that_resizes_what_is_not_there_is_refused():
    analysis = analyze(Graph(two_convs()))
    made = plan(analysis, {"w0": 3})
    with pytest.raises(UsageError, match="nowhere"):
        rewrite(analysis.graph, replace(made, initializers={"nowhere": Take((1,), {0: np.array([0])})}))
    integers = (replace(_integer(), node="nobody"),)
    with pytest.raises(UsageError, match="nobody"):
        rewrite(analysis.graph, replace(made, integers=integers))


def _integer():
    from conet_onnx.planning import Integer

    return Integer("n0", "attribute:group", 0, 1, 1)
