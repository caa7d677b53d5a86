"""How `analyze --explain` prints its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from conet_onnx.cli.output import says, several
from conet_onnx.errors import UsageError

if TYPE_CHECKING:
    from conet_onnx.analysis import Analysis
    from conet_onnx.coupling import Width
    from conet_onnx.explaining import Answer, Asked, Bond
    from conet_onnx.ties import Link

__all__ = ["check_asked", "explained", "show_explained"]

MEMBERS = 4  # named of each kind
TERMS = 6  # named of a sum
ROLES = {"out": "made by", "in": "summed by", "channel": "besides"}


def check_asked(names: Sequence[str]) -> None:
    """Raise UsageError for more names than two."""
    if len(names) > 2:
        raise UsageError(f"--explain is given {len(names)} times: once for one name, twice for the path between two.")


def explained(analysis: Analysis, asked: Sequence[Asked]) -> dict[str, Any]:
    """The answers as JSON: `axes` to one name, and `coupled`, `paths` and both names' `axes` to two."""
    from conet_onnx.explaining import bonds, explain

    names = [one.name for one in asked]
    answers = [{"asked": one.name, **answer.as_json()} for one in asked for answer in explain(analysis, one)]
    if len(asked) == 1:
        return {"asked": names, "axes": answers}
    found = [bond.as_json() for bond in bonds(analysis, *asked)]
    return {"asked": names, "coupled": bool(found), "paths": found, "axes": answers}


def show_explained(analysis: Analysis, asked: Sequence[Asked]) -> None:
    """Print what one name is tied to or frozen by, or the path between two."""
    from conet_onnx.explaining import bonds, explain

    if len(asked) == 2:
        for line in _between(analysis, asked, bonds(analysis, *asked)):
            says(line)
        return
    for k, answer in enumerate(explain(analysis, asked[0])):
        if k:
            says()
        for line in _about(answer):
            says(line)


def _about(answer: Answer) -> Iterator[str]:
    if answer.state == "resizable":
        yield from _resizable(answer)
    elif answer.reason is not None:
        yield f"{answer}: {answer.size}, frozen ({answer.reason.kind})"
        yield f"  {_sentence(answer.reason.detail)}"
        if len(answer.path) > 1:
            yield "  From here to there:"
            yield from _steps(answer.path)
        yield f"  To free it: {answer.hint}"
    else:
        yield f"{answer}: {_plain(answer)}"


def _plain(answer: Answer) -> str:
    if answer.state == "one":
        return "1: there is nothing to resize"
    if answer.state == "follows":
        return f"follows the model's inputs ({answer.made_of}) while the model runs: nothing to resize"
    return "has no axes that are followed: a single number, sizes and indices, or a value of unknown shape"


def _resizable(answer: Answer) -> Iterator[str]:
    of = answer.made_of.split(" + ")
    sum_of = " + ".join([*of[:TERMS], *([f"... ({len(of)} parts)"] if len(of) > TERMS else [])])
    size = f"{answer.size}" if answer.size is not None else "a size that follows the model's inputs"
    yield f"{answer}: {size}{f' = {sum_of}' if sum_of else ''}, can be resized"
    for width, path in zip(answer.widths, answer.near, strict=False):
        yield f"  {_named(width)}, {_kind(width)}: {_weight_axes(width)} along"
        yield from _members(width)
        if width.limit:
            yield f"    It cannot grow: {width.limit}"
        if path:
            yield "    To the nearest in another layer:"
            yield from _steps(path)
    rest = [width.id for width in answer.widths[len(answer.near) :]]
    if rest:
        yield f"  And {several(len(rest), 'width')} more: {', '.join(rest)}"


def _weight_axes(width: Width) -> str:
    return "1 weight axis changes" if len(width.members) == 1 else f"{len(width.members)} weight axes change"


def _members(width: Width) -> Iterator[str]:
    for role, title in ROLES.items():
        places = [f"{m.tensor}[{m.axis}]" for m in width.members if m.role == role]
        if places:
            more = [f"and {len(places) - MEMBERS} more"] if len(places) > MEMBERS else []
            yield f"    {title:9} {len(places):4}   {', '.join([*places[:MEMBERS], *more])}"


def _between(analysis: Analysis, asked: Sequence[Asked], found: Sequence[Bond]) -> Iterator[str]:
    from conet_onnx.explaining import explain

    a, b = (one.name for one in asked)
    for bond in found:
        yield f"{a} and {b} are coupled by {_named(bond.width)}, {bond.width.size} channels:"
        yield from _steps(bond.path)
    if not found:
        yield f"{a} and {b} are not coupled."
        for answer in dict.fromkeys(answer for one in asked for answer in explain(analysis, one)):
            yield f"  {_belongs(answer)}"


def _belongs(answer: Answer) -> str:
    if answer.state == "resizable":
        ids = ", ".join(_named(width) for width in answer.widths[:TERMS])
        return f"{answer}: {answer.size}, belongs to {ids}{' and others' if len(answer.widths) > TERMS else ''}"
    if answer.reason is not None:
        return f"{answer}: {answer.size}, frozen ({answer.reason.kind}): {answer.reason.detail}"
    return f"{answer}: {_plain(answer)}"


def _steps(path: Sequence[Link]) -> Iterator[str]:
    places = [f"{link.tensor}[{link.axis}]" for link in path]
    if len(path) == 1:
        yield f"    {places[0]} itself"
    for link, here, there in zip(path, places, places[1:], strict=False):
        yield f"    {here} --{link.node}--> {there}"


def _named(width: Width) -> str:
    return width.id if width.name == width.id else f"{width.id} ({width.name})"


def _kind(width: Width) -> str:
    more = f" (+{len(width.mixed_by) - 1})" if len(width.mixed_by) > 1 else ""
    return "exact" if width.exact else f"mixed by {width.mixed_by[0]}{more}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
