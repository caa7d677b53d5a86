"""Deciding a resize: which channels stay, what copies are divided by, what is refused, and how a plan is written."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import numpy as np
import onnx
import oracles
import pytest
import strategies
from strategies import Builder

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.costs import Price
from conet_onnx.errors import BudgetUnreachable, UsageError
from conet_onnx.graph import Graph
from conet_onnx.planning import Selection, Take, UsePlan, WidthPlan, budgeted, plan, scaled, select
from conet_onnx.rewriting import rewrite


def builder(batch: int = 2) -> Builder:
    b = Builder(random.Random(2), opset=17, batch=batch)
    b.tidy = True
    return b


def plain(*channels: int) -> Analysis:
    """A chain of convolutions with biases and Relus: a width of each size, w0, w1, ..."""
    b = builder()
    x = b.input("x", (2, 3, 4, 4))
    for c in channels:
        x = b.conv(x, c, kernel=3)
        x = b.node("Relu", [x], b.shapes[x])
    return analyze(Graph(b.model([b.conv(x, 2)])))


def averaged(joined: bool = False) -> Analysis:
    """Six channels that are averaged over; joined: together with four others."""
    b = builder()
    x = b.conv(b.input("x", (2, 3, 4, 4)), 6)
    if joined:
        x = b.node("Concat", [x, b.conv(b.node("Relu", [x], b.shapes[x]), 4)], (2, 10, 4, 4), axis=1)
    x = b.node("Mul", [x, b.mean(x, [1])], b.shapes[x])
    return analyze(Graph(b.model([b.conv(x, 2)])))


def takes(made: WidthPlan) -> tuple[Take, Take, Take]:
    """Of a chain with one width: where it is made, its bias, and where it is read."""
    by_rank = [t for t in made.initializers.values() if isinstance(t, Take)]
    first, second = (next(t for t in by_rank if len(t.shape) == 4 and axis in t.take) for axis in (0, 1))
    return first, next(t for t in by_rank if len(t.shape) == 1), second


def scores(analysis: Analysis, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.random(w.size) for n, w in analysis.widths.items()}


class TestShrinking:
    def test_the_channels_of_highest_score_stay_in_their_order(self):
        analysis = plain(6)
        made = plan(analysis, {"w0": 3}, {"w0": np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.7])})
        first, bias, second = takes(made)
        assert first.take[0].tolist() == bias.take[0].tolist() == second.take[1].tolist() == [1, 3, 5]
        assert not first.divide
        assert not second.divide

    def test_ties_are_settled_by_place(self):
        made = plan(plain(6), {"w0": 2}, {"w0": np.ones(6)})
        assert next(iter(made.initializers.values())).take[0].tolist() == [0, 1]

    def test_without_scores_the_norm_decides(self):
        analysis = plain(6)
        name = next(iter(analysis.graph.weights))
        weight = analysis.graph.array(name) * np.array([1, 90, 1, 80, 1, 70], np.float32).reshape(6, 1, 1, 1)
        analysis = analyze(analysis.graph.with_arrays({name: weight}))
        assert plan(analysis, {"w0": 3}).initializers[name].take[0].tolist() == [1, 3, 5]

    def test_a_plan_of_scores_is_masking(self):
        analysis = plain(6, 8, 5)
        given = scores(analysis)
        sizes = {"w0": 2, "w1": 1, "w2": 5}
        kept = {n: np.sort(np.argsort(-given[n], kind="stable")[:s]) for n, s in sizes.items()}
        resized = rewrite(analysis.graph, plan(analysis, sizes, given))
        chosen = {n: Selection(k, np.ones(len(k))) for n, k in kept.items()}
        assert oracles.compare_with(analysis, resized, chosen).moved > 1e-3


class TestGrowing:
    @pytest.mark.parametrize("transfer", ["slice", "net2net", "zero"])
    @pytest.mark.parametrize("size", [7, 12, 20])
    def test_every_transfer_keeps_the_function(self, transfer, size):
        analysis = plain(6, 8)
        resized = rewrite(analysis.graph, plan(analysis, {"w0": size, "w1": size + 2}, transfer=transfer, seed=4))
        feeds = oracles.feeds_of(analysis.graph)
        before, after = (oracles.run_all(g, feeds) for g in (analysis.graph, resized))
        for value in analysis.graph.outputs:
            assert oracles.distance(after[value.name], before[value.name]) < oracles.TOLERANCE

    def test_every_channel_stays_first_and_the_best_are_copied(self):
        made = plan(plain(4), {"w0": 6}, {"w0": np.array([0.1, 0.9, 0.2, 0.8])})
        take = next(iter(made.initializers.values()))
        assert take.take[0].tolist() == [0, 1, 2, 3, 1, 3]

    def test_neighbours_are_copied_together(self):
        """So that they are copied in one stretch of memory."""
        scores = {"w0": np.array([0.1, 0.9, 0.2, 0.8])}
        assert takes(plan(plain(4), {"w0": 8}, scores))[0].take[0].tolist() == [0, 1, 2, 3] * 2
        assert takes(plan(plain(4), {"w0": 10}, scores))[0].take[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 1, 3]

    def test_only_what_is_chosen_from_is_scored(self, monkeypatch):
        analysis, asked = plain(4), []

        def score(graph, criterion, *, analysis, widths):
            asked.append(list(widths))
            return {name: np.arange(4.0) for name in widths}

        monkeypatch.setattr("conet_onnx.planning.importance", score)
        for size in (2, 4, 6, 8):
            plan(analysis, {"w0": size})
        assert asked == [["w0"], [], ["w0"], []]

    def test_divisors_are_as_precise_as_the_weight(self):
        divide = takes(plan(plain(4), {"w0": 8}, transfer="net2net"))[2].divide[1]
        assert np.array_equal(divide, divide.astype(np.float32))

    @pytest.mark.parametrize("transfer", ["slice", "net2net"])
    @pytest.mark.parametrize("size", [7, 13, 24])
    def test_divisors_of_the_copies_of_a_channel_sum_to_one(self, transfer, size):
        made = plan(plain(6), {"w0": size}, transfer=transfer)
        second = takes(made)[2]
        shares = np.zeros(6)
        np.add.at(shares, second.take[1], 1 / second.divide[1])
        assert shares == pytest.approx(np.ones(6))

    def test_slice_divides_evenly(self):
        second = takes(plan(plain(4), {"w0": 8}))[2]
        assert second.divide[1].tolist() == [2.0] * 8

    def test_net2net_divides_unevenly_and_by_seed(self):
        analysis = plain(4)
        made = [takes(plan(analysis, {"w0": 8}, transfer="net2net", seed=s))[2].divide[1] for s in (1, 1, 2)]
        assert len(set(made[0].tolist())) == 8
        assert made[0].tolist() == made[1].tolist() != made[2].tolist()

    def test_channels_without_a_copy_are_not_divided(self):
        second = takes(plan(plain(4), {"w0": 5}, transfer="net2net"))[2]
        assert sorted(second.divide[1].tolist())[:3] == [1, 1, 1]

    def test_zero_gives_copies_no_weight(self):
        analysis = plain(4)
        made = plan(analysis, {"w0": 6}, {"w0": np.arange(4.0)}, transfer="zero")
        first, _, second = takes(made)
        assert first.take[0].tolist() == [0, 1, 2, 3, 2, 3]
        assert second.take[1].tolist() == [0, 1, 2, 3, -1, -1]
        assert not second.divide
        assert second.as_json()["take"]["1"] == [0, 1, 2, 3, None, None]


class TestMixedWidths:
    def test_they_say_by_what_and_shrink(self):
        analysis = averaged()
        width = analysis.widths["w0"]
        assert not width.exact
        assert width.mixed_by
        assert plan(analysis, {"w0": 4}).widths["w0"].new == 4

    def test_they_do_not_shrink_where_exactness_is_asked_for(self):
        with pytest.raises(UsageError, match="not exact"):
            plan(averaged(), {"w0": 4}, exact=True)
        assert plan(averaged(), {"w0": 6}, exact=True).initializers == {}

    def test_they_grow_by_whole_multiples_and_then_keep_the_function(self):
        analysis = averaged()
        with pytest.raises(UsageError, match="multiples of 6, got 9"):
            plan(analysis, {"w0": 9})
        assert plan(analysis, {"w0": 9}, inexact=True).widths["w0"].new == 9
        for transfer in ("slice", "net2net", "zero"):
            made = plan(analysis, {"w0": 18}, transfer=transfer)
            indices = next(iter(made.initializers.values())).take[0]
            chosen = {"w0": Selection(indices, np.ones(len(indices)))}
            oracles.compare_with(analysis, rewrite(analysis.graph, made), chosen)

    def test_parts_of_one_average_grow_alike_or_not_at_all(self):
        analysis = averaged(joined=True)
        assert sorted(w.size for w in analysis.widths.values()) == [4, 6]
        with pytest.raises(UsageError, match="together with others"):
            plan(analysis, {"w0": 12})
        made = plan(analysis, {n: 2 * w.size for n, w in analysis.widths.items()})
        assert plan(analysis, {"w0": 12}, inexact=True).widths["w0"].new == 12
        feeds = oracles.feeds_of(analysis.graph)
        before, after = (oracles.run_all(g, feeds) for g in (analysis.graph, rewrite(analysis.graph, made)))
        name = analysis.graph.outputs[0].name
        assert oracles.distance(after[name], before[name]) < oracles.TOLERANCE


class TestRefusals:
    @pytest.mark.parametrize("size", [0, -3, 2.5, "4", True, None, float("nan")])
    def test_a_size_that_is_no_whole_number_of_at_least_one(self, size):
        with pytest.raises(UsageError, match="at least 1"):
            plan(plain(6), {"w0": size})

    def test_an_unknown_width(self):
        with pytest.raises(UsageError, match="'w9' is not a width"):
            plan(plain(6), {"w9": 3})

    def test_a_frozen_width(self):
        analysis = analyze(plain(6, 8).graph, freeze=["w0"])
        with pytest.raises(UsageError, match="'w0' is frozen"):
            plan(analysis, {"w0": 3})
        assert plan(analysis, {"w1": 3}).widths["w1"].new == 3

    def test_an_unknown_transfer(self):
        with pytest.raises(UsageError, match="transfer 'magic'"):
            plan(plain(6), {"w0": 3}, transfer="magic")

    @pytest.mark.parametrize("given", [np.ones(5), np.ones((6, 1)), np.float64(1)])
    def test_scores_of_another_shape(self, given):
        with pytest.raises(UsageError, match="expected 6 numbers"):
            plan(plain(6), {"w0": 3}, {"w0": given})


class TestScaling:
    def test_every_width_times_the_scale_and_at_least_one(self):
        analysis = plain(6, 8, 5)
        assert scaled(analysis, 0.5) == ({"w0": 3, "w1": 4, "w2": 2}, {})
        assert scaled(analysis, 2) == ({"w0": 12, "w1": 16, "w2": 10}, {})
        assert scaled(analysis, 0.01) == ({"w0": 1, "w1": 1, "w2": 1}, {})
        assert scaled(analysis, 1) == ({}, {})

    def test_multiples(self):
        assert scaled(plain(24, 20, 3), 0.5, multiple=8)[0] == {"w0": 16, "w1": 8, "w2": 2}
        assert scaled(plain(24), 1.5, multiple=8)[0] == {"w0": 32}

    @pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
    def test_a_scale_that_is_not_positive(self, scale):
        with pytest.raises(UsageError, match="scale"):
            scaled(plain(6), scale)

    def test_a_multiple_that_is_not_positive(self):
        with pytest.raises(UsageError, match="multiple"):
            scaled(plain(6), 0.5, multiple=0)

    def test_mixed_widths_are_left_alone_and_named(self):
        analysis = averaged()
        assert scaled(analysis, 0.5, exact=True)[0] == {}
        assert "w0" in scaled(analysis, 0.5, exact=True)[1]
        assert scaled(analysis, 0.5)[0] == {"w0": 3}
        assert scaled(analysis, 1.5)[0] == {}
        assert "w0" in scaled(analysis, 1.5)[1]
        assert scaled(analysis, 1.5, inexact=True) == ({"w0": 9}, {})
        assert scaled(analysis, 2) == ({"w0": 12}, {})
        widths, left = scaled(analysis, 2.5)
        assert widths == {"w0": 12}
        assert "w0" in left

    @pytest.mark.parametrize("scale", [0.3, 0.7, 1.3, 2.0, 2.6])
    def test_what_scaling_proposes_can_be_planned(self, scale):
        for seed in range(10):
            analysis = analyze(Graph(strategies.random_model(random.Random(f"scaled {seed}"))))
            for options in ({}, {"exact": True}, {"inexact": True}):
                widths, left = scaled(analysis, scale, **options)
                resized = rewrite(analysis.graph, plan(analysis, widths, **options))
                oracles.assert_valid(resized, analysis.graph)
                assert set(left) <= set(analysis.widths)


@dataclass
class Limit:
    macs: float

    def fits(self, price: Price) -> bool:
        return price.macs <= self.macs


class TestBudgets:
    def test_the_largest_scale_within_the_limit(self):
        analysis = plain(32, 48, 64)
        limit = Limit(analysis.costs.source.macs * 0.4)
        widths, _ = budgeted(analysis, limit)
        price = analysis.costs.price(widths)
        assert limit.fits(price)
        assert price.macs > 0.9 * limit.macs

    def test_a_budget_that_is_met_already_changes_nothing(self):
        analysis = plain(6)
        assert budgeted(analysis, Limit(analysis.costs.source.macs)) == ({}, {})

    def test_a_budget_that_cannot_be_met_says_the_nearest(self):
        analysis = plain(6)
        smallest = analysis.costs.price({"w0": 1})
        with pytest.raises(BudgetUnreachable, match=f"macs={smallest.macs:,}"):
            budgeted(analysis, Limit(1))
        assert budgeted(analysis, Limit(smallest.macs))[0] == {"w0": 1}


class TestPlansAsFiles:
    def test_a_plan_comes_back_from_its_file(self, tmp_path):
        for seed in range(8):
            analysis = analyze(Graph(strategies.random_model(random.Random(f"json {seed}"))))
            made = select(analysis, oracles.resized_at_random(analysis, np.random.default_rng(seed)))
            made.save(tmp_path / "plan.json")
            back = WidthPlan.load(tmp_path / "plan.json")
            assert back.as_json() == made.as_json()
            first, second = (rewrite(analysis.graph, p).model for p in (made, back))
            assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)

    def test_the_format_of_the_contract(self):
        b = builder()
        x = b.input("x", (2, 3, 4, 4))
        shared = b.weight(b.floats(6))
        ends = [b.conv(x, 6, bias=shared), b.conv(x, 6, bias=shared)]
        sizes = b.integers([2, 4])
        pieces = b.node_of("Split", [ends[0], sizes], [(2, 2, 4, 4), (2, 4, 4, 4)], axis=1)
        model = b.model([b.conv(e, 2) for e in (*pieces, ends[1])])
        analysis = analyze(Graph(model))
        made = plan(analysis, {"w0": 4, "w1": 2}).as_json()
        assert made["format"] == "conet-onnx-plan/1"
        assert made["source"] == {"file": "", "sha256": analysis.graph.sha256}
        assert made["values"] == "source"
        assert made["widths"] == {
            "w0": {"name": analysis.widths["w0"].name, "from": 2, "to": 4},
            "w1": {"name": analysis.widths["w1"].name, "from": 4, "to": 2},
        }
        uses = made["initializers"][shared]
        assert uses["shape"] == [6]
        assert [u["node"] for u in uses["uses"]] == [n.name for n in analysis.graph.nodes if n.op == "Conv"][:2]
        assert uses["uses"][0]["as"] == shared
        assert uses["uses"][1]["take"] == {}
        assert uses["uses"][1]["input"] == 2
        split = next(n for n in analysis.graph.nodes if n.op == "Split")
        assert made["integers"] == [
            {"node": split.name, "where": "input:1", "position": 0, "from": 2, "to": 4},
            {"node": split.name, "where": "input:1", "position": 1, "from": 4, "to": 2},
        ]
        assert json.loads(json.dumps(made)) == made

    def test_a_trained_plan_says_so(self):
        made = plan(plain(6), {"w0": 3}).changed()
        assert made.values == "changed"
        assert WidthPlan.from_json(made.as_json()).values == "changed"

    @pytest.mark.parametrize(
        "text", ["", "[]", "3", "{}", '{"format": "other/1"}', '{"format": "conet-onnx-plan/1", "widths": 3}']
    )
    def test_what_is_no_plan_is_refused(self, tmp_path, text):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(UsageError):
            WidthPlan.load(tmp_path / "plan.json")

    def test_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(UsageError, match="cannot read"):
            WidthPlan.load(tmp_path / "nowhere.json")


class TestSelections:
    def test_only_what_moves_is_listed(self):
        analysis = plain(6, 8)
        made = select(analysis, {"w1": Selection(np.array([0, 3]), np.ones(2))})
        assert list(made.widths) == ["w1"]
        assert {next(iter(t.shape)) for t in made.initializers.values() if isinstance(t, Take)} == {8, 2}

    def test_a_permutation_is_a_plan_too(self):
        analysis = plain(6)
        order = np.array([3, 1, 0, 5, 2, 4])
        oracles.compare(analysis, {"w0": Selection(order, np.ones(6))})
        made = select(analysis, {"w0": Selection(order, np.ones(6))})
        assert made.widths["w0"].old == made.widths["w0"].new == 6
        assert len(made.initializers) == 3

    def test_copies_of_both_axes_of_one_weight_divide_once(self):
        """Only the axis that is summed over is divided; with both axes one width too."""
        b = builder()
        x = b.conv(b.input("x", (2, 3, 4, 4)), 6)
        x = b.node("Add", [x, b.conv(b.node("Relu", [x], b.shapes[x]), 6)], b.shapes[x])
        analysis = analyze(Graph(b.model([b.conv(x, 2)])))
        assert [w.size for w in analysis.widths.values()] == [6]
        made = plan(analysis, {"w0": 12})
        square = next(t for t in made.initializers.values() if isinstance(t, Take) and t.shape == (6, 6, 1, 1))
        assert list(square.take) == [0, 1]
        assert list(square.divide) == [1]

    def test_unshared_weights_are_listed_by_use(self):
        b = builder()
        x = b.input("x", (2, 3, 4, 4))
        bias = b.weight(b.floats(5))
        model = b.model([b.conv(b.conv(x, 5, bias=bias), 2) for _ in range(2)])
        analysis = analyze(Graph(model))
        uses = plan(analysis, {"w0": 3}).initializers[bias]
        assert isinstance(uses, tuple)
        assert all(isinstance(u, UsePlan) for u in uses)
        assert len({u.name for u in uses}) == 2
        assert onnx.checker.check_model(rewrite(analysis.graph, plan(analysis, {"w0": 3})).model) is None
