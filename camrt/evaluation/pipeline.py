"""``evaluate``: from a configuration to a folder with measurements and reports."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from camrt import __version__
from camrt.evaluation.analysis import Analysis, RunFacts, analyse
from camrt.evaluation.optional import require
from camrt.evaluation.report import make_gallery, write_csv, write_html, write_markdown, write_problems
from camrt.evaluation.runner import NoProgress, Progress, run
from camrt.evaluation.scores import read_scores
from camrt.evaluation.session import EvaluationSession
from camrt.evaluation.store import TABLE_NAME, RunFolder

HTML_NAME, CSV_NAME, MARKDOWN_NAME, PROBLEMS_NAME = "report.html", "summary.csv", "report.md", "problems.csv"

_NEEDED = ("pyarrow.parquet", "jinja2", "matplotlib.figure")
_VERSIONED = ("numpy", "onnxruntime", "pillow")


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What a run left behind.

    Attributes:
        analysis: the statistics.
        folder: holds the table of measurements, and the reports.
    """

    analysis: Analysis
    folder: Path

    def files(self) -> dict[str, Path]:
        """What the files are, to their paths."""
        return output_files(self.folder)


def output_files(folder: Path) -> dict[str, Path]:
    """What a run in ``folder`` writes for its reader, to its paths."""
    names = {
        "report": HTML_NAME,
        "markdown": MARKDOWN_NAME,
        "summary": CSV_NAME,
        "problems": PROBLEMS_NAME,
        "measurements": TABLE_NAME,
    }
    return {kind: folder / name for kind, name in names.items()}


def evaluate(
    session: EvaluationSession, command: str, progress: Progress | None = None, fresh: bool = False
) -> EvaluationResult:
    """Measures what the folder of the run lacks, then writes the reports.

    Killed at any moment, the same call goes on where it was; a finished run only gets new reports.

    Args:
        session: what to measure.
        command: how a person would do it again; for the reports.
        progress: hears how far it is.
        fresh: measure everything again.

    Raises:
        MissingPackageError: a package of the [evaluation] extra is missing, before anything is measured.
        RunFolderError: as RunFolder.open.
        EmptyRunError: no image could be evaluated.
    """
    for module in _NEEDED:
        require(module)
    path = Path(session.config.out)
    with RunFolder.open(path, session.identity(), session.chunks, fresh) as folder:
        run(session, folder, progress or NoProgress())
        table = folder.finish()
        problems = [*session.dataset.problems, *folder.problems()]
        write_problems(path / PROBLEMS_NAME, problems)
        scores = read_scores(table, session.specs, session.metrics)
        result = EvaluationResult(analyse(_facts(session, command), scores, problems), path)
        write_csv(path / CSV_NAME, result.analysis)
        write_markdown(path / MARKDOWN_NAME, result.analysis)
        write_html(path / HTML_NAME, result.analysis, make_gallery(session, result.analysis))
    return result


def _facts(session: EvaluationSession, command: str) -> RunFacts:
    config = session.config
    bundle = "the model that comes with camrt" if config.bundle is None else config.bundle
    return RunFacts(
        name=config.name
        or f"{Path(config.bundle).stem if config.bundle else 'embedded model'} on {session.dataset.name}",
        command=command,
        bundle=bundle,
        bundle_sha256=session.bundle_sha256,
        data=session.dataset.name,
        found=len(session.dataset.items),
        chosen=len(session.items),
        class_choice=config.class_choice,
        target=config.target,
        seed=config.seed,
        resamples=config.resamples,
        versions={
            "camrt": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in _VERSIONED},
        },
    )
