"""The operators that a model is made of when it runs, with their sizes as functions of its widths.

The model is optimised by onnxruntime at some random widths. Each integer of a node (an axis, an attribute,
a size in a constant) is then either the same in all of them, or found to be a multiple of a size that the analysis
knows as a polynomial in the widths, perhaps rounded up to a block. Which nodes there are, and what they fuse, is
onnxruntime's affair: no pattern is known by name here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from conet_onnx.analysis import Analysis
from conet_onnx.graph import Graph
from conet_onnx.latency.nodes import Node, Numbers, read_nodes
from conet_onnx.planning import plan
from conet_onnx.rewriting import rewrite
from conet_onnx.sizes import Polynomial, Polynomials, compile_table

__all__ = ["BLOCKS", "Kind", "Operator", "Operators", "Term", "find_operators", "probe_widths"]

Ints: TypeAlias = NDArray[np.int64]
Expression: TypeAlias = tuple[Fraction, Polynomial, int]
"""A size: a ratio of a polynomial in the widths, rounded up to a block."""
When: TypeAlias = Literal["always", "aligned", "odd"]

PROBES = 3
SPARE = 2  # more, at odd widths, where an operator may happen to be laid out otherwise in some
ALIKE = 0.9  # share of the nodes that two models have in common where both are laid out alike
STEP = 16  # probes have widths of these multiples where they can: layouts in blocks then need no padding
BLOCKS = (1, 2, 4, 8, 16, 32, 64)
FINEST = 4  # the smallest size at which operators are measured: below it, times are a call's cost and noise


class Term(NamedTuple):
    """An integer of a node: `times` a symbol, rounded up to a multiple of `block`; without a symbol (-1) `times`."""

    times: int
    symbol: int = -1
    block: int = 1

    def at(self, sizes: Sequence[int]) -> int:
        """Its value where the symbols have these sizes."""
        if self.symbol < 0:
            return self.times
        return -(-self.times * int(sizes[self.symbol]) // self.block) * self.block

    def __str__(self) -> str:
        if self.symbol < 0:
            return str(self.times)
        named = ("" if self.times == 1 else str(self.times)) + chr(ord("a") + self.symbol)
        return named if self.block == 1 else f"{named}^{self.block}"


@dataclass(frozen=True)
class Kind:
    """What operators have in common that take the same time at the same free sizes: a form, and its integers, each
    fixed or in terms of `symbols` free sizes. `example` is a node of this kind, to be timed at other sizes."""

    form: str
    terms: tuple[Term, ...]
    example: Node | None = field(default=None, compare=False, repr=False)

    @cached_property
    def symbols(self) -> int:
        """How many free sizes there are."""
        return 1 + max((term.symbol for term in self.terms), default=-1)

    @cached_property
    def key(self) -> str:
        """The same for equal kinds of any model."""
        text = json.dumps([self.form, [str(term) for term in self.terms]])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def numbers(self, sizes: Sequence[int]) -> Numbers:
        """A node's integers where the symbols have these sizes."""
        return tuple(term.at(sizes) for term in self.terms)

    @cached_property
    def op(self) -> str:
        """The operator's name, with its domain."""
        described = json.loads(self.form)
        return f"{described['domain']}.{described['op']}".lstrip(".")

    @cached_property
    def inputs(self) -> tuple[tuple[str, ...], ...]:
        """The axes of its inputs, as readers see them."""
        return tuple(tuple(map(str, axes)) for axes in self._axes)

    @cached_property
    def _axes(self) -> list[list[Term]]:
        described, left = json.loads(self.form), list(self.terms)
        for attribute in described["attributes"].values():
            if "integers" in attribute:
                del left[: 1 if attribute["integers"] is None else attribute["integers"]]
        axes = []
        for given in described["inputs"]:
            if given:
                axes.append(left[: given["rank"]])
                del left[: given["rank"] + given["values"]]
        return axes

    def elements(self, sizes: Ints) -> NDArray[np.float64]:
        """[n, symbols] -> [n]: elements of its inputs."""
        total = np.zeros(len(sizes))
        for axes in self._axes:
            size = np.ones(len(sizes))
            for times, symbol, block in axes:
                size *= times if symbol < 0 else -(-times * sizes[:, symbol] // block) * block
            total += size
        return total


@dataclass(frozen=True)
class Operator:
    """A node of the model that runs; its kind's symbols are the columns `columns` of the model's sizes.

    `when` says at which widths there is such a node: always, where all widths that it reads are `aligned`, or where
    one is `odd`.
    """

    name: str
    kind: Kind
    columns: tuple[int, ...]
    when: When = "always"


@dataclass(frozen=True)
class Operators:
    """All operators of one model that could be followed, and `left`, the names of those that could not.

    `sizes(rows)` gives the sizes that they have at some widths. Where widths are no multiples of `multiple`,
    onnxruntime runs other operators around them.
    """

    listed: tuple[Operator, ...]
    left: tuple[str, ...]
    expressions: tuple[Expression, ...]
    widths: tuple[str, ...]
    multiple: int = 1

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of these operators, each once."""
        return tuple(dict.fromkeys(one.kind for one in self.listed))

    @cached_property
    def reads(self) -> tuple[tuple[int, ...], ...]:
        """Of each operator, the indices of the widths that its sizes depend on."""
        widths = [{k for monomial in polynomial for k in monomial} for _, polynomial, _ in self.expressions]
        return tuple(tuple(sorted(set().union(*(widths[c] for c in one.columns)))) for one in self.listed)

    def sizes(self, rows: Ints) -> Ints:
        """[n, widths] -> [n, expressions]."""
        exact = self._table(np.atleast_2d(rows))
        made: Ints = (np.ceil(exact * self._ratios / self._blocks - 1e-9) * self._blocks).astype(np.int64)
        return made

    def there(self, rows: Ints) -> NDArray[np.bool_]:
        """[n, widths] -> [n, operators]: which of them there are at these widths."""
        rows = np.atleast_2d(rows)
        sizes = np.round(self._table(rows) * self._ratios, 6) % self.multiple != 0  # before they are rounded to blocks
        odd = rows % self.multiple != 0
        made = np.ones((len(odd), len(self.listed)), dtype=np.bool_)
        for k, one in enumerate(self.listed):
            if one.when != "always":  # one of sizes that nothing changes goes by all widths
                own = sizes[:, list(one.columns)] if one.columns else odd
                made[:, k] = own.any(axis=1) == (one.when == "odd")
        return made

    def as_json(self) -> dict[str, Any]:
        """What `from_json` needs; the kinds by their keys."""
        return {
            "widths": list(self.widths),
            "multiple": self.multiple,
            "left": list(self.left),
            "sizes": [
                [str(ratio), [[list(indices), times] for indices, times in polynomial.items()], block]
                for ratio, polynomial, block in self.expressions
            ],
            "kinds": {kind.key: [json.loads(kind.form), [list(term) for term in kind.terms]] for kind in self.kinds},
            "operators": [[one.name, one.kind.key, list(one.columns), one.when] for one in self.listed],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Operators:
        """The inverse of `as_json`; the kinds have no examples, so that they can be predicted and not measured.

        Raises KeyError, TypeError, ValueError where it is something else.
        """
        kinds = {
            key: Kind(json.dumps(form, sort_keys=True), tuple(Term(*term) for term in terms))
            for key, (form, terms) in document["kinds"].items()
        }
        return cls(
            tuple(
                Operator(name, kinds[key], tuple(columns), when) for name, key, columns, when in document["operators"]
            ),
            tuple(document["left"]),
            tuple(
                (Fraction(ratio), {tuple(indices): times for indices, times in polynomial}, block)
                for ratio, polynomial, block in document["sizes"]
            ),
            tuple(document["widths"]),
            document["multiple"],
        )

    @cached_property
    def _table(self) -> Any:
        return compile_table([polynomial for _, polynomial, _ in self.expressions], len(self.widths))

    @cached_property
    def _ratios(self) -> NDArray[np.float64]:
        return np.array([float(ratio) for ratio, _, _ in self.expressions])

    @cached_property
    def _blocks(self) -> NDArray[np.float64]:
        return np.array([float(block) for _, _, block in self.expressions])


def find_operators(
    analysis: Analysis,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Operators:
    """The operators of a model, found by what onnxruntime makes of it at random widths.

    First at multiples of 16, then at ever finer ones until it makes something else of it; then at widths that are no
    such multiples. Raises ModelError where the model does not run.
    """
    rng = np.random.default_rng(seed)
    tell = progress or (lambda _: None)
    rows: list[Ints] = []
    read: list[dict[str, Node]] = []

    def probe(step: int) -> int:
        widths = probe_widths(analysis, rng, step=step)
        rows.append(analysis.costs.row(widths))
        nodes = read_nodes(resized(analysis, widths), provider=provider, threads=threads, seed=seed)
        read.append({node.name: node for node in nodes})
        tell(len(read) / (2 * PROBES + SPARE + 3))
        return len(read) - 1

    aligned, odd, multiple = [probe(STEP) for _ in range(PROBES)], [], STEP
    while multiple > 1:
        finer = probe(multiple // 2)
        if _alike(read[finer], read[0]) < ALIKE:
            odd = [probe(1) for _ in range(PROBES + SPARE)]
            break
        aligned.append(finer)
        multiple //= 2
    finder = _Finder(analysis, np.array(rows))
    regular, left = finder.operators(read, aligned)
    irregular, more = finder.operators(read, odd) if odd else ([], [])
    listed = _joined(regular, irregular) if odd else regular
    tell(1.0)
    return Operators(
        tuple(listed), tuple(dict.fromkeys([*left, *more])), tuple(finder.expressions), tuple(analysis.widths), multiple
    )


def probe_widths(analysis: Analysis, rng: np.random.Generator, *, step: int = STEP) -> dict[str, int]:
    """Random widths, distinct as far as possible, from half of each to all of it, or to 128: odd multiples of `step`,
    where there is room (of 16: any multiples); blocks of small widths too, lest a size seem fixed that is only rounded
    up. No larger: what a model at twice its widths weighs is what finding its operators takes."""
    made: dict[str, int] = {}
    for name, width in analysis.widths.items():
        most = max(width.size, 8 * STEP) if width.max is None else width.size  # some blocks, at any step
        choices = np.arange(step, most + 1, step) if step == STEP else np.arange(step, most + 1, 2 * step)
        choices = choices if len(choices) else np.arange(1, most + 1)
        for least in (STEP, width.size // 2):  # below a block, layouts may change once more
            choices = choices[choices >= least] if (choices >= least).any() else choices
        fresh = [c for c in choices.tolist() if c not in made.values() and c != width.size]
        made[name] = int(rng.choice(fresh or choices))
    return made


def resized(analysis: Analysis, widths: Mapping[str, int]) -> Graph:
    """The model at some widths, for its shapes and its time alone: which channels it keeps does not matter."""
    scores = {name: np.ones(width.size) for name, width in analysis.widths.items()}
    return rewrite(analysis.graph, plan(analysis, widths, scores, inexact=True))


def _alike(a: Mapping[str, Node], b: Mapping[str, Node]) -> float:
    """The share of the nodes of either that both have."""
    both = sum(name in b and node.form == b[name].form for name, node in a.items())
    return both / max(len(a), len(b), 1)


def _joined(aligned: Sequence[Operator], odd: Sequence[Operator]) -> list[Operator]:
    """Those of both, which are always there, and those of either."""
    a, b = ({(one.name, one.kind, one.columns): one for one in many} for many in (aligned, odd))
    made = [one if key in b else replace(one, when="aligned") for key, one in a.items()]
    return made + [replace(one, when="odd") for key, one in b.items() if key not in a]


class _Finder:
    """Finds sizes among polynomials; sizes that are equal in all models are one."""

    def __init__(self, analysis: Analysis, rows: Ints) -> None:
        self._rows = rows
        polynomials = Polynomials(analysis)
        known: dict[tuple[tuple[tuple[int, ...], int], ...], Polynomial] = {}
        for shape in analysis.shapes.values():
            for segment in shape:
                polynomial = polynomials.of(segment)
                if any(polynomial):
                    known.setdefault(tuple(sorted(polynomial.items())), polynomial)
        self._known = list(known.values())
        self._values = compile_table(self._known, len(analysis.widths))(rows).T  # [polynomials, models]
        self.expressions: list[Expression] = []
        self._columns: dict[tuple[Fraction, int, int], int] = {}

    def operators(self, read: Sequence[Mapping[str, Node]], models: Sequence[int]) -> tuple[list[Operator], list[str]]:
        """Those of some models that are optimised alike, and the names of those that are not understood."""
        made, left = [], []
        for name in dict.fromkeys(name for k in models for name in read[k]):
            forms: dict[str, list[int]] = {}  # sums of odd widths may be multiples all the same, in some models
            for k in models:
                if name in read[k]:
                    forms.setdefault(read[k][name].form.text, []).append(k)
            alike = max(forms.values(), key=len)
            one = self.operator(name, [read[k][name] for k in alike], alike) if len(alike) >= PROBES else None
            if one is not None:
                made.append(one)
            elif 2 * sum(map(len, forms.values())) > len(models):  # else it is there by chance
                left.append(name)
        return made, left

    def operator(self, name: str, nodes: Sequence[Node], models: Sequence[int]) -> Operator | None:
        """The operator that one node of each of some models is; None where a number of it is not understood."""
        integers = np.array([node.numbers for node in nodes], dtype=np.int64).T
        fixed = (integers == integers[:, :1]).all(axis=1)
        found: dict[tuple[int, ...], tuple[Fraction, int, int]] = {}
        for values in integers[~fixed]:
            key = tuple(values.tolist())
            if key not in found:
                one = self._identify(values, models)
                if one is None:
                    return None
                found[key] = one
        symbols: dict[tuple[Fraction, int, int], int] = {}
        order = sorted(found.values(), key=lambda one: (one[2], one[0]))
        derived: dict[tuple[Fraction, int, int], Term] = {}
        for ratio, polynomial, block in order:  # what is a multiple of another symbol, or that rounded, is no new one
            for (other, same, other_block), symbol in symbols.items():
                times = ratio / other
                if same == polynomial and other_block == 1 and times.denominator == 1:
                    derived[ratio, polynomial, block] = Term(int(times), symbol, block)
                    break
            else:
                symbols.setdefault((ratio, polynomial, block), len(symbols))
                derived[ratio, polynomial, block] = Term(1, symbols[ratio, polynomial, block])
        # in the order of appearance, so that equal nodes are of equal kinds
        renamed: dict[int, int] = {}
        terms = []
        for values, constant in zip(integers, fixed, strict=True):
            if constant:
                terms.append(Term(int(values[0])))
                continue
            term = derived[found[tuple(values.tolist())]]
            terms.append(term._replace(symbol=renamed.setdefault(term.symbol, len(renamed))))
        columns = {renamed[symbol]: self._column(one) for one, symbol in symbols.items() if symbol in renamed}
        kind = Kind(nodes[0].form.text, tuple(terms), nodes[0])
        return Operator(name, kind, tuple(columns[k] for k in range(len(columns))))

    def _column(self, one: tuple[Fraction, int, int]) -> int:
        if one not in self._columns:
            self._columns[one] = len(self.expressions)
            ratio, polynomial, block = one
            self.expressions.append((ratio, self._known[polynomial], block))
        return self._columns[one]

    def _identify(self, values: Ints, models: Sequence[int]) -> tuple[Fraction, int, int] | None:
        """(ratio, polynomial, block) of a number with these values in these models: the simplest that fits all."""
        known = self._values[:, models]
        for block in BLOCKS:
            rounded = np.ceil(known / block) * block
            (equal,) = np.nonzero((rounded == values).all(axis=1))
            if equal.size:
                return Fraction(1), int(equal[0]), block
        ratios = values[-1] / known[:, -1]
        (fits,) = np.nonzero(np.isclose(ratios[:, None] * known, values, rtol=1e-9, atol=0).all(axis=1))
        made = [(Fraction(float(ratios[k])).limit_denominator(1 << 16), int(k)) for k in fits]
        if not made:
            return None
        ratio, polynomial = min(made, key=lambda one: (one[0].denominator, one[0].numerator, one[1]))
        return ratio, polynomial, 1
