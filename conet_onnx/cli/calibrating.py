"""What `resize --data` is for: samples that weights are fitted on, and how near they came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from conet_onnx.cli.evaluate import describe_choice, given_normalisation, noun
from conet_onnx.cli.output import log, says, several, table
from conet_onnx.cli.widths import by_reason
from conet_onnx.errors import UsageError

if TYPE_CHECKING:
    from conet_onnx.analysis import Analysis
    from conet_onnx.data import Normalisation, Split
    from conet_onnx.graph import Graph
    from conet_onnx.torch_backend.reconstruction import Reconstruction
    from conet_onnx.transfer import Transferred

__all__ = ["FITTING", "MEASURED", "Samples", "check_data"]

FITTING = "least-squares"
MEASURED = ("taylor", "obd", "activation", "fur")


def check_data(
    transfer: str, criterion: str, recalibrate: bool | None, data: str | None, beside: Mapping[str, Any]
) -> bool:
    """Whether statistics are to be measured again: with data, unless least-squares fits, or as asked.

    Raises UsageError where data is missing, or has no use; `beside` are options that go with it.
    """
    if data is None:
        if transfer == FITTING:
            raise UsageError(
                f"--transfer {transfer} fits weights on training samples: give it --data D (its test split is not "
                "read)."
            )
        if criterion in MEASURED:
            raise UsageError(
                f"--criterion {criterion} is measured on training samples: give it --data D (its test split is not "
                "read)."
            )
        if recalibrate:
            raise UsageError("--recalibrate measures statistics on training samples: give it --data D.")
        for name, value in beside.items():
            if value is not None:
                raise UsageError(f"--{name} is about --data D.")
        return False
    if recalibrate is False and transfer != FITTING and criterion not in MEASURED:
        raise UsageError(f"--transfer {transfer} --no-recalibrate has no use for --data: leave it out.")
    return transfer != FITTING if recalibrate is None else recalibrate


@dataclass(frozen=True, slots=True)
class Samples:
    """Training samples of a data set, and how the model takes them."""

    dataset: str
    what: str  # images, say
    split: Split
    normalisation: Normalisation
    count: int
    seed: int

    @classmethod
    def read(
        cls,
        graph: Graph,
        data: str,
        *,
        samples: int | None,
        seed: int,
        provider: str,
        resize: int | None,
        crop: int | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> Samples:
        """As --data and what goes with it say; says how the inputs are normalised. Raises DataError."""
        from conet_onnx.data import check_fits, load_data
        from conet_onnx.evaluation import resolve_normalisation
        from conet_onnx.transfer import SAMPLES

        dataset = load_data(data, resize=resize, crop=crop).with_validation()  # what is held out is not fitted on
        check_fits(graph, dataset, "train", classes=False)
        given = given_normalisation(dataset, mean, std, "train")
        choice = resolve_normalisation(graph, dataset, given=given, provider=provider)
        log(describe_choice(choice.as_json()))
        split = dataset.split("train")
        count = min(samples or SAMPLES, len(split))
        return cls(dataset.name, noun(dataset, "train"), split, choice.normalisation, count, seed)

    def batches(self, graph: Graph) -> Sequence[Mapping[str, Any]]:
        """As a model, which may be freed of its batch size, takes them."""
        from conet_onnx.transfer import calibration_batches

        return calibration_batches(graph, self.split, self.normalisation, samples=self.count, seed=self.seed)

    def scores(self, analysis: Analysis, criterion: str) -> Mapping[str, Any]:
        """Of each channel of each width (criteria.channel_scores), on the same samples."""
        from conet_onnx.criteria import channel_scores
        from conet_onnx.data import fed
        from conet_onnx.transfer import drawn

        some = drawn(self.split, self.count, self.seed)
        normalise = partial(fed, analysis.graph, normalisation=self.normalisation)
        return channel_scores(analysis, criterion, data=some, normalise=normalise, seed=self.seed)

    def show(self, made: Transferred) -> None:
        """Print what was fitted, and how near it came; and what was measured again."""
        if made.norms is not None:
            says(
                f"Measured the statistics of {several(made.norms.norms, 'BatchNormalization')} again on {self.count:,} "
                f"training {self.what} of {self.dataset}"
                + (f", and those of {several(len(made.norms.layers), 'layer')} without." if made.norms.layers else ".")
            )
        if made.fit is not None:
            self._show_fit(made.fit)

    def _show_fit(self, fit: Reconstruction) -> None:
        says(f"Fitted {several(len(fit.layers), 'weight')} on {self.count:,} training {self.what} of {self.dataset}.")
        if fit.layers:
            rows = (("their layers' outputs", *fit.mean), ("the model's outputs", fit.before, fit.after))
            says()
            table(
                ("error, over the source's variance", "sliced", "fitted"),
                [(what, f"{before:.3g}", f"{after:.3g}") for what, before, after in rows],
                right=("sliced", "fitted"),
            )
        for reason, names in by_reason(fit.left).items():
            says(f"Left as sliced: {', '.join(names)} ({reason}).")
        says()
