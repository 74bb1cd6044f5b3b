"""Protocols: which gallery crops are right for a query, which are ignored, and how an average is taken.

A protocol is a record; `PROTOCOLS` holds the named ones, and `dataclasses.replace` makes another:

    >>> from dataclasses import replace
    >>> replace(PROTOCOLS["market1501"], name="also 0", junk_pids=(-1, 0)).junk_pids
    (-1, 0)

One that keeps the name of another is printed with what it changed:

    >>> replace(PROTOCOLS["market1501"], mean="all").title
    "market1501 with mean 'all'"
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from entire_id.errors import EvaluationError
from entire_id.records import DISTRACTOR_PID, JUNK_PID

__all__ = ["PROTOCOLS", "Ap", "Mean", "Positives", "Protocol", "Within", "find_protocol"]

Positives = Literal["other-camera", "any-camera", "other-sequence"]
"""Which crops of the query's person are right: those of another camera, all, or those of the query's own camera in
another sequence. Its other crops are ignored: neither right nor wrong."""

Within = Literal["everything", "camera", "continent"]
"""Where a query searches: in the whole gallery, or in the crops of its own camera or continent."""

Ap = Literal["step", "trapezoid"]
"""`step`: the mean of the precisions at the positives. `trapezoid`: the area under the line through the points of
precision and recall, as the Matlab code of Market-1501 computes it; lower on the same ranks."""

Mean = Literal["valid", "all"]
"""Whether the means run over the queries that have a positive, or over all but junk, with 0 for the others."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How features are scored.

    Attributes:
        name: what it is called in results.
        source: where it comes from, in a sentence.
        positives: see `Positives`.
        within: see `Within`.
        junk_pids: gallery crops of these identities are ignored by every query, and queries of them are skipped.
        single_shot: of each other identity, and of the query's, one gallery crop alone is kept, drawn at random.
        repeats: with `single_shot`, how many times a gallery is drawn; 0 gives the expectation over all draws.
        seed: of the draws.
        pool_queries: the query is the mean of the unit features of all query crops of a person under a camera.
        ap: see `Ap`.
        mean: see `Mean`.
    """

    name: str
    source: str = ""
    positives: Positives = "other-camera"
    within: Within = "everything"
    junk_pids: tuple[int, ...] = (JUNK_PID,)
    single_shot: bool = False
    repeats: int = 0
    seed: int = 0
    pool_queries: bool = False
    ap: Ap = "step"
    mean: Mean = "valid"

    def __post_init__(self) -> None:
        kinds = {"positives": Positives, "within": Within, "ap": Ap, "mean": Mean}
        for name, kind in kinds.items():
            if (value := getattr(self, name)) not in get_args(kind):
                raise EvaluationError(f"protocol {name} {value!r} is not one of {', '.join(get_args(kind))}")
        if self.repeats < 0:
            raise EvaluationError(f"protocol repeats {self.repeats} is not at least 0")
        if self.single_shot and self.ap != "step":
            raise EvaluationError("a single-shot protocol has one positive a query: its AP is the step AP")

    @property
    def nobody_pids(self) -> tuple[int, ...]:
        """Pids of queries that are skipped: two distractors without a label are no pair."""
        return (*self.junk_pids, DISTRACTOR_PID)

    @property
    def needs_cameras(self) -> bool:
        """Whether camera numbers enter."""
        return self.positives != "any-camera" or self.within == "camera"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of queries and gallery that enter."""
        return ("continent",) * (self.within == "continent") + ("seq",) * (self.positives == "other-sequence")

    @property
    def title(self) -> str:
        """Its name in print. Where that is the name of one of `PROTOCOLS`, what it changed follows."""
        named = asdict(PROTOCOLS.get(self.name, self))
        changes = [
            f"{name} {value!r}" for name, value in asdict(self).items() if name != "source" and value != named[name]
        ]
        return f"{self.name} with {', '.join(changes)}" if changes else self.name


_MARKET = "Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015"

_NAMED = (
    Protocol("market1501", f"{_MARKET}; AP as torchreid and fast-reid take it"),
    Protocol("market1501_trapezoid", f"{_MARKET}; AP as the authors' Matlab code takes it", ap="trapezoid"),
    Protocol("cross_camera", "Yıldız and Kasım, ENTIRe-ID, FG 2024: the rule of market1501"),
    Protocol(
        "intra_camera",
        "Yıldız and Kasım, ENTIRe-ID, FG 2024: a model tuned within one camera; the rule is this package's",
        positives="other-sequence",
        within="camera",
    ),
    Protocol(
        "leave_one_continent_out",
        "this package: a query searches its own continent, which the model has not seen in training",
        within="continent",
    ),
    Protocol("no_camera", "sets without cameras, such as LaST (Shu et al., 2021)", positives="any-camera"),
    Protocol(
        "all_cameras",
        "general image retrieval: crops of the query's own camera are right, too",
        positives="any-camera",
    ),
    Protocol(
        "single_gallery_shot",
        "Li et al., DeepReID, CVPR 2014 (CUHK03); the expectation over all draws is this package's",
        single_shot=True,
    ),
    Protocol("multi_query", f"{_MARKET}, multiple queries, average pooling", pool_queries=True),
)

PROTOCOLS = {protocol.name: protocol for protocol in _NAMED}
"""The protocols by name."""


def find_protocol(protocol: str | Protocol) -> Protocol:
    """Return the protocol of that name, or the one given.

    Raises:
        EvaluationError: no protocol has that name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise EvaluationError(f"no protocol {protocol!r}; there is {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]
