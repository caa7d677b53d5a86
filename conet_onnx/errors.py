"""Errors that a user can act on; every one knows its exit code."""

from __future__ import annotations

__all__ = [
    "BudgetUnreachable",
    "ConetError",
    "DataError",
    "ModelError",
    "NotYet",
    "OutputError",
    "ProcessDied",
    "UnsupportedOp",
    "UsageError",
    "VerificationFailed",
]


class ConetError(Exception):
    """A failure that is explained in one line: where, what, got, what to do."""

    exit_code = 2


class UsageError(ConetError):
    """The request itself is wrong: an unknown group, a width below one, an existing run folder."""


class NotYet(UsageError):
    """The request is part of the contract, and not of this release."""


class OutputError(UsageError):
    """The output cannot be written there."""


class UnsupportedOp(ConetError):
    """The torch backend has no lowering for an operator of this model."""

    exit_code = 3


class ModelError(ConetError):
    """The input cannot be read as a valid ONNX model with weights."""

    exit_code = 3


class DataError(ConetError):
    """The input cannot be read as a data set that fits the model."""

    exit_code = 3


class BudgetUnreachable(ConetError):
    """No allowed set of widths meets the budget; the message says the nearest that does."""

    exit_code = 4


class VerificationFailed(ConetError):
    """The resized model is not what its plan says."""

    exit_code = 5


class ProcessDied(ConetError):
    """A process that this one had started was killed, and so was the one that took its place."""

    exit_code = 1
