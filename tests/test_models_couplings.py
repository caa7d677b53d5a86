"""Which convolutions share their output channels in the networks of CONETv2, told from the papers' architectures.

Each expectation is written from what the network's blocks add, concatenate and convolve by channel, in the names of the
torch modules; a group is the convolutions that have a width of it along their outputs, and all groups are compared.
CONETv2 (Hosseini et al., 2021) lists such groups by hand, one function a family; where the graph says something finer
or coarser than its lists, the test says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.graph import Graph
from models.catalogue import built
from models.exporting import exported
from tools.torchvision_schemas import define_missing_schemas

define_missing_schemas()

from torchvision.models import ShuffleNetV2  # noqa: E402 - after the schemas

pytestmark = pytest.mark.usefixtures("one_thread")

Groups = Iterator[set[str]]


def groups(analysis: Analysis) -> Counter[frozenset[str]]:
    """For each width, the convolutions along whose outputs it lies; of the linear layers none."""
    convolutions = {name for name, weight in analysis.graph.weights.items() if len(weight.dims) == 4}
    found = (
        frozenset(m.tensor.removesuffix(".weight") for m in width.members if m.axis == 0 and m.tensor in convolutions)
        for width in analysis.widths.values()
    )
    return Counter(found)


def expected(made: Iterable[set[str]]) -> Counter[frozenset[str]]:
    return Counter(map(frozenset, made))


def analysed(name: str, size: int = 32) -> Analysis:
    model, shape = built(name, size=size)
    return analyze(Graph(exported(model, shape)))


def resnet34() -> Groups:
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        yield from ({f"layer{stage}.{k}.conv1"} for k in range(blocks))
        start = "conv1" if stage == 1 else f"layer{stage}.0.downsample.0"
        yield {start, *(f"layer{stage}.{k}.conv2" for k in range(blocks))}


def test_resnet34_has_a_spine_for_each_stage_and_a_width_in_each_block() -> None:
    """CONETv2's ResNet adds a 1x1 convolution wherever two widths of a stage differ, so its lists tie each sum alone;
    in ResNet-34 as published the sums of a stage are one chain."""
    assert groups(analysed("resnet34", size=8)) == expected(resnet34())


def mobilenet_v2() -> Groups:
    stages = [(1, 1), (6, 2), (6, 3), (6, 4), (6, 3), (6, 3), (6, 1)]  # expansion, blocks
    block = 1
    yield {"features.0.0", "features.1.conv.0.0"}  # the first block does not expand: its depthwise reads the stem
    for expansion, blocks in stages:
        numbers = range(block, block + blocks)
        project = "conv.1" if expansion == 1 else "conv.2"
        yield {f"features.{k}.{project}" for k in numbers}  # the first projects, each of the others adds to it
        if expansion > 1:
            yield from ({f"features.{k}.conv.0.0", f"features.{k}.conv.1.0"} for k in numbers)
        block += blocks
    yield {"features.18.0"}


def test_mobilenet_v2_ties_an_expansion_to_its_depthwise_and_the_projections_of_a_stage() -> None:
    """CONETv2 leaves a shortcut out where two widths differ, so its lists have a projection for each block alone;
    its expansions are 6 times what comes in, ours have widths of their own."""
    assert groups(analysed("mobilenet_v2")) == expected(mobilenet_v2())


def squeezenet() -> Groups:
    yield {"features.0"}
    for fire in (3, 4, 5, 7, 8, 9, 10, 12):
        yield from ({f"features.{fire}.{part}"} for part in ("squeeze", "expand1x1", "expand3x3"))


def test_squeezenet_ties_no_two_convolutions() -> None:
    """What is concatenated is not added. CONETv2 gives both expansions of a module one size: a choice, not a tie."""
    assert groups(analysed("squeezenet")) == expected(squeezenet())


def shufflenet_v2(repeats: Iterable[int]) -> tuple[list[set[str]], list[list[str]]]:
    """The groups within branches, and of each stage the convolutions that make its spine.

    A stage's first block concatenates two branches and shuffles them, each other block passes one half on and shuffles
    it with a branch of the other; the next stage's first branch begins with a depthwise convolution of all of that.
    """
    inner: list[set[str]] = [{"conv1.0", "stage2.0.branch1.0"}, {"conv5.0"}]
    spines = []
    for stage, blocks in zip((2, 3, 4), repeats, strict=True):
        inner += [{f"stage{stage}.{k}.branch2.0", f"stage{stage}.{k}.branch2.3"} for k in range(blocks)]
        spines.append([f"stage{stage}.0.branch1.2", *(f"stage{stage}.{k}.branch2.5" for k in range(blocks))])
        spines[-1] += [f"stage{stage + 1}.0.branch1.0"] if stage < 4 else []
    return inner, spines


def parts(found: Iterable[frozenset[str]], spine: list[str]) -> list[frozenset[str]]:
    return [group for group in found if group & set(spine)]


def test_shufflenet_v2_cuts_the_halves_of_each_stage_alike() -> None:
    """CONETv2 gives a stage's branches one size. Here that size is the sum of widths, since each split cuts a half in
    two: each part runs through both branches of the first block, and the parts of a stage hold on to one another.
    Halves of 8, 16 and 32 channels can be cut as often as they are."""
    repeats = (3, 4, 3)
    analysis = analyze(Graph(exported(ShuffleNetV2(list(repeats), [8, 16, 32, 64, 32], num_classes=5), (3, 64, 64))))
    found = groups(analysis)
    inner, spines = shufflenet_v2(repeats)
    assert not [f for f in analysis.frozen if f.reason.kind not in ("input", "output", "spatial")]
    assert sum(1 for group in found.elements() if not any(parts([group], spine) for spine in spines)) == len(inner)
    for group in inner:
        assert found[frozenset(group)] == 1
    for spine in spines:
        own = parts(found, spine)
        assert all(group <= set(spine) for group in own)
        assert frozenset().union(*own) == set(spine)
        assert all({spine[0], spine[1]} <= group for group in own)  # the two branches of the first block
        sizes = Counter[str]()
        for width in analysis.widths.values():
            sizes.update({m.tensor.removesuffix(".weight"): width.size for m in width.members if m.axis == 0})
        assert sizes[spine[0]] == analysis.graph.weights[f"{spine[0]}.weight"].dims[0]


def test_in_shufflenet_v2_as_published_odd_halves_keep_their_size_and_nothing_else_does() -> None:
    """116 channels are 58 and 58, and 58 are 29 and 29: the third split cuts pairs of channels apart. CONETv2 resizes
    those too, since it trains the new network from scratch; an exact resize of a trained one cannot."""
    analysis = analysed("shufflenet_v2")
    found = groups(analysis)
    inner, spines = shufflenet_v2((4, 8, 4))
    for group in inner:
        assert found[frozenset(group)] == 1
    frozen = {f.tensor.removesuffix(".weight") for f in analysis.frozen if f.reason.kind in ("misaligned", "fixed")}
    convolutions = {name.removesuffix(".weight") for name, w in analysis.graph.weights.items() if len(w.dims) == 4}
    outputs = {f.tensor.removesuffix(".weight") for f in analysis.frozen if f.axis == 0} & frozen & convolutions
    assert outputs < {name for spine in spines for name in spine}
    assert {f"stage2.{k}.branch2.5" for k in (1, 2, 3)} <= outputs
    assert not any(spine[0] in outputs for spine in spines)


def darts(cells: int) -> Groups:
    """A node is a sum; a skip adds the cell's first input, made by fit0, to nodes 4 and 5; nodes are concatenated.

    That is the list of CONETv2 (sizes C0 to C3 of a cell, and one within each separable convolution), but where fit0
    halves the image: there it is two convolutions, concatenated, and each has its own channels of C0.
    """
    yield {"stem.0"}
    reduces = {cells // 3, 2 * cells // 3}
    for k in range(cells):
        cell = f"cells.{k}"
        if k in reduces:  # pooled inputs are added to one another, and skips to those
            yield {f"{cell}.fit0.conv", f"{cell}.fit1.conv"}
            continue
        first = {f"{cell}.ops.{op}.0.depthwise" for op in (0, 2)}
        first |= {f"{cell}.ops.4.1.pointwise", f"{cell}.ops.7.pointwise"}
        halves = ("fit0.conv1", "fit0.conv2") if k - 1 in reduces else ("fit0.conv",)
        yield from ({f"{cell}.{name}", *first} for name in halves)
        yield {f"{cell}.fit1.conv", *(f"{cell}.ops.{op}.0.depthwise" for op in (1, 3, 4))}
        yield {*(f"{cell}.ops.{op}.1.pointwise" for op in (0, 1)), f"{cell}.ops.7.depthwise"}  # node 2, read by a third
        yield {f"{cell}.ops.{op}.1.pointwise" for op in (2, 3)}  # node 3
        yield from ({f"{cell}.ops.{op}.0.pointwise", f"{cell}.ops.{op}.1.depthwise"} for op in range(5))


def test_darts_ties_what_the_nodes_of_a_cell_add() -> None:
    assert groups(analysed("darts7")) == expected(darts(7))


def test_a_tie_that_is_missing_or_too_many_is_seen() -> None:
    """The comparison itself: one layer moved, one group merged."""
    known = list(resnet34())
    assert expected(known) != expected([*known[:-1], known[-1] - {"layer4.2.conv2"}])
    assert expected(known) != expected([*known[:-2], known[-2] | known[-1]])
