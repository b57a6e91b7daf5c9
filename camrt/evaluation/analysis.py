"""Everything that a report says about the scores of a run, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from camrt.datasets import Problem
from camrt.errors import CamrtError
from camrt.evaluation.questions import (
    COMPARED_METRICS,
    AgreementRow,
    RankingRow,
    RefinementRow,
    agreement,
    main_metric_of,
    ranking,
    refinement,
)
from camrt.evaluation.scores import Scores
from camrt.evaluation.statistics import Estimates, rank_correlations


class EmptyRunError(CamrtError):
    """Not one image of the data could be evaluated."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Where the numbers come from.

    Attributes:
        name: of the run.
        command: what was typed.
        bundle, bundle_sha256: the model.
        data: the data set.
        found: images in the data set; chosen: those that were to be evaluated.
        class_choice, target, seed, resamples: as in EvaluationConfig.
        versions: package to version.
    """

    name: str
    command: str
    bundle: str
    bundle_sha256: str
    data: str
    found: int
    chosen: int
    class_choice: str
    target: str
    seed: int
    resamples: int
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Analysis:
    """The content of a report.

    Attributes:
        facts: of the run.
        scores: the measurements.
        problems: of the data.
        main_metric: what explainers are sorted by.
        ranking: all explainers, the best first.
        group_rankings: the same for the images of each group.
        correlations: of all pairs of metrics, (M, M), signs turned where lower is better; None with one metric.
        agreement: of metrics without ground truth with those that have it; may be empty.
        refinement: compared metric to the rows of RefineCAM against its base methods; may be empty.
    """

    facts: RunFacts
    scores: Scores
    problems: Sequence[Problem]
    main_metric: str
    ranking: list[RankingRow]
    group_rankings: dict[str, list[RankingRow]]
    correlations: Estimates | None
    agreement: list[AgreementRow]
    refinement: dict[str, list[RefinementRow]]

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions among images of known class; None where there are none."""
        known = self.scores.correct[self.scores.correct >= 0]
        return float(known.mean()) if len(known) else None

    def problem_counts(self) -> dict[str, int]:
        """Kind of problem to the number of cases."""
        counts: dict[str, int] = {}
        for problem in self.problems:
            counts[problem.kind] = counts.get(problem.kind, 0) + 1
        return counts


def analyse(facts: RunFacts, scores: Scores, problems: Sequence[Problem]) -> Analysis:
    """Computes all statistics of a run.

    Raises:
        EmptyRunError: there are no scores.
    """
    if not scores.items:
        first = f" The first problem: {problems[0].kind} {problems[0].name}. {problems[0].detail}" if problems else ""
        raise EmptyRunError(f"None of the {facts.chosen} images could be evaluated.{first}", "Check the data.")
    main, resamples, seed = main_metric_of(scores.metrics), facts.resamples, facts.seed
    refinements = {
        name: refinement(scores, name, resamples, seed) for name in COMPARED_METRICS if name in scores.metrics
    }
    return Analysis(
        facts=facts,
        scores=scores,
        problems=problems,
        main_metric=main,
        ranking=ranking(scores, main, resamples, seed),
        group_rankings={name: ranking(scores.of_group(name), main, resamples, seed) for name in scores.group_names},
        correlations=rank_correlations(scores.oriented(), 1, seed) if len(scores.metrics) > 1 else None,
        agreement=agreement(scores, resamples, seed),
        refinement={name: rows for name, rows in refinements.items() if rows},
    )
