from __future__ import annotations

import csv
import html.parser
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camrt.datasets import Problem, SyntheticShapes
from camrt.evaluation import EvaluationResult, evaluate
from camrt.evaluation.analysis import Analysis, EmptyRunError, RunFacts, analyse
from camrt.evaluation.report import write_csv, write_html, write_markdown, write_problems
from camrt.evaluation.report.document_json import to_json
from camrt.evaluation.report.tables import group_table, layer_table, number, ranking_table
from tests.evaluation.fixtures import baseline, make_scores, open_session, plain, refined, write_small_bundle

HOSTILE = '<script src="https://evil.example/x.js">alert(1)</script>&amp; $x^2 |`'
_ADDRESSES = ("src", "href", "xlink:href", "action", "data", "poster", "srcset")


class Page(html.parser.HTMLParser):
    """What a browser would load or run, the ids, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.styles = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag
        for name, value in attributes:
            if name in _ADDRESSES:
                self.addresses.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
            else:
                self.links += re.findall(r"url\(([^)]*)\)", value or "")
                assert not name.startswith("on")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.styles += data
        else:
            self.text += data


def assert_self_contained(text: str) -> Page:
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "foreignobject"} & set(page.tags)
    assert page.addresses
    for address in page.addresses:
        assert address.startswith(("#", "data:image/jpeg;base64,", "data:image/png;base64,")), address
    assert all(link.startswith("#") for link in page.links)
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    assert len(set(page.ids)) == len(page.ids)
    inner = {address[1:] for address in page.addresses + page.links if address.startswith("#")}
    assert inner <= set(page.ids)
    return page


def analysis_of(name: str = "a run", problems: tuple[Problem, ...] = (), layer: str = "stage3") -> Analysis:
    rng = np.random.default_rng(0)
    explainers = (plain("gradcam", layer), plain("gradcam", "stage1"), refined("gradcam"), baseline())
    values = rng.random((12, 4, 3))
    values[0, 1, 2] = np.nan
    scores = make_scores(values, ("arcc", "complexity", "mass_iou"), explainers, ("small",) * 6 + ("large",) * 6)
    facts = RunFacts(
        name, f"camrt evaluate {name}", name, "ab" * 32, "data", 12, 12, "predicted", "probability", 0, 40, {}
    )
    return analyse(facts, scores, problems)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> EvaluationResult:
    """A real run over pictures of hostile names, one of them broken, with masks."""
    root = tmp_path_factory.mktemp("run")
    bundle = write_small_bundle(root)
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    hostile = HOSTILE.replace("/", "_")
    for index, item in enumerate(SyntheticShapes("test", 6, 64)):
        for kind, pixels in (("images", item.image), ("masks", item.object_mask)):
            Image.fromarray(pixels).save(root / kind / f"{hostile}{index}.png")
    (root / "images" / f"bad {hostile}.png").write_text("no")
    session = open_session(
        bundle,
        root / "out",
        data=str(root / "images"),
        masks=str(root / "masks"),
        methods="refinecam,gradcam++",
        layers="all,each",
        baselines="random,ones",
        metrics="arcc,road,mass_iou,l2",
        name=HOSTILE,
        batch_size=4,
    )
    return evaluate(session, f"camrt evaluate {HOSTILE}")


class TestHtml:
    def test_a_real_report_is_self_contained_and_escaped(self, result: EvaluationResult) -> None:
        text = result.files()["report"].read_text(encoding="utf-8")
        page = assert_self_contained(text)
        assert page.text.count(HOSTILE) >= 3
        assert page.text.count(f"bad {HOSTILE.replace('/', '_')}.png") >= 1
        assert "is not a JPEG, PNG or WebP image" in page.text
        assert page.tags.count("img") == 6 * 3
        assert page.tags.count("image") == 1  # the colour bar
        assert page.tags.count("svg") == 7
        for words in ("Ranking", "Distributions", "Best and worst images", "unreadable image: 1", "seed", "numpy"):
            assert words in page.text
        assert len(text) < 2_000_000

    def test_charts_show_names_as_they_are(self, tmp_path: Path) -> None:
        path = tmp_path / "r.html"
        write_html(path, analysis_of(layer=HOSTILE), [])
        page = assert_self_contained(path.read_text(encoding="utf-8"))
        assert page.text.count(f"gradcam {HOSTILE}") >= 4

    def test_the_same_scores_make_the_same_file(self, tmp_path: Path) -> None:
        for name in ("a.html", "b.html"):
            write_html(tmp_path / name, analysis_of(), [])
        assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()

    def test_many_problems_are_counted_and_the_first_shown(self, tmp_path: Path) -> None:
        problems = tuple(Problem("unreadable image", f"<b>{number}</b>.png", "why") for number in range(130))
        write_html(tmp_path / "r.html", analysis_of(problems=problems), [])
        page = assert_self_contained((tmp_path / "r.html").read_text(encoding="utf-8"))
        assert "unreadable image: 130" in page.text
        assert "and 30 more, in problems.csv" in page.text
        assert "<b>99</b>.png: why" in page.text
        assert "<b>100</b>.png" not in page.text

    def test_one_explainer_one_metric_one_image(self, tmp_path: Path) -> None:
        scores = make_scores(np.full((1, 1, 1), 0.5), ("arcc",), (refined(),))
        facts = RunFacts("r", "c", "b", "ab", "d", 1, 1, "predicted", "probability", 0, 10, {})
        analysis = analyse(facts, scores, [])
        write_html(tmp_path / "r.html", analysis, [])
        write_markdown(tmp_path / "r.md", analysis)
        page = assert_self_contained((tmp_path / "r.html").read_text(encoding="utf-8"))
        assert "0.500 [0.500, 0.500]" in page.text
        assert (analysis.agreement, analysis.refinement, analysis.correlations) == ([], {}, None)


class TestDocuments:
    def test_csv_has_every_mean_overall_and_by_group(self, tmp_path: Path) -> None:
        analysis = analysis_of()
        write_csv(tmp_path / "s.csv", analysis)
        with (tmp_path / "s.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == 3 * 4 * 3
        for row in rows:
            part = analysis.scores if row["group"] == "" else analysis.scores.of_group(row["group"])
            assert int(row["images"]) == len(part.items)
            key = row["method"], row["base_method"], row["fusion"], row["layers"]
            place = [spec.key for spec in part.explainers].index(key)
            assert float(row["mean"]) == pytest.approx(np.nanmean(part.metric(row["metric"])[:, place]))
            assert int(row["scores"]) == np.isfinite(part.metric(row["metric"])[:, place]).sum()
            assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])

    def test_tables_say_where_scores_are_missing(self) -> None:
        analysis = analysis_of()
        cells = [cell for row in ranking_table(analysis).rows for cell in row if "n=" in cell]
        mean = np.nanmean(analysis.scores.metric("mass_iou")[:, 1])
        assert cells == [f"{mean:.3f} (n=11)"]
        values = np.array([[[0.5]], [[np.nan]], [[0.25]]])
        scores = make_scores(values, ("arcc",), (plain("gradcam"),), ("small", "small", "large"))
        table = group_table(analyse(analysis.facts, scores, []))
        assert table is not None
        assert table.rows == [("gradcam stage3", "0.500 [0.500, 0.500] (n=1)", "0.250 [0.250, 0.250]")]

    def test_markdown_tables_are_whole(self, tmp_path: Path) -> None:
        write_markdown(tmp_path / "r.md", analysis_of(name="a | b <i>\nc"))
        text = (tmp_path / "r.md").read_text(encoding="utf-8")
        assert text.startswith("# a \\| b \\<i> c\n")
        sections = text.split("\n## ")[1:]
        titles = [section.splitlines()[0] for section in sections]
        assert titles == [
            "Which metric without ground truth agrees with the ground truth?",
            "The same mean for parts of the data",
            "arcc ↑ per layer and fused",
            "RefineCAM against its base methods: arcc ↑",
            "mass_iou ↑ per layer and fused",
            "RefineCAM against its base methods: mass_iou ↑",
            "Ranking",
            "arcc ↑ by group",
        ]
        for section in sections:
            lines = [line for line in section.splitlines() if line.startswith("|")]
            assert len(lines) > 2
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1

    def test_a_link_is_replaced_and_its_target_left_alone(self, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.write_text("precious")
        writers = {
            "s.csv": lambda path: write_csv(path, analysis_of()),
            "p.csv": lambda path: write_problems(path, [Problem("kind", "name")]),
            "r.md": lambda path: write_markdown(path, analysis_of()),
            "r.html": lambda path: write_html(path, analysis_of(), []),
        }
        for name, write in writers.items():
            (tmp_path / name).symlink_to(target)
            write(tmp_path / name)
            assert target.read_text() == "precious"
            assert (tmp_path / name).read_text(encoding="utf-8")
            assert not (tmp_path / name).is_symlink()

    def test_many_groups_are_only_in_the_csv(self, tmp_path: Path) -> None:
        groups = tuple(f"class {number}" for number in range(13))
        values = np.random.default_rng(0).random((13, 2, 2))
        scores = make_scores(values, ("arcc", "mass_iou"), (plain("gradcam"), refined()), groups)
        facts = RunFacts("r", "c", "b", "ab", "d", 13, 13, "predicted", "probability", 0, 10, {})
        analysis = analyse(facts, scores, [])
        write_csv(tmp_path / "s.csv", analysis)
        write_markdown(tmp_path / "r.md", analysis)
        assert (tmp_path / "s.csv").read_text().count("class 12,1,") == 4
        assert "class 12" not in (tmp_path / "r.md").read_text()
        assert analysis.agreement[0].by_group == {}

    def test_the_layer_table_has_what_families_share(self) -> None:
        explainers = (
            plain("gradcam"),
            plain("layercam"),
            refined("gradcam"),
            refined("layercam"),
            refined("gradcam", "max"),
        )
        values = np.arange(5.0).reshape(1, 5, 1)
        facts = RunFacts("r", "c", "b", "ab", "d", 1, 1, "predicted", "probability", 0, 10, {})
        table = layer_table(analyse(facts, make_scores(values, ("arcc",), explainers), []), "arcc")
        assert table.columns == ("base method", "stage3", "product, all")
        assert [[cell.split(" ")[0] for cell in row] for row in table.rows] == [
            ["gradcam", "0.000", "2.000"],
            ["layercam", "1.000", "3.000"],
        ]

    def test_json_is_finite(self) -> None:
        document = json.loads(json.dumps(to_json(analysis_of(problems=(Problem("k", "n"),))), allow_nan=False))
        assert document["images"] == 12
        assert document["problem_counts"] == {"k": 1}
        assert {row["metric"] for row in document["agreement"]} == {"arcc", "complexity"}
        assert [row["explainer"]["label"] for row in document["refinement"]["arcc"]][
            -1
        ] == "refinecam(gradcam, product) all"

    def test_no_scores_at_all(self) -> None:
        scores = make_scores(np.empty((0, 1, 1)), ("arcc",), (refined(),))
        facts = RunFacts("r", "c", "b", "ab", "d", 3, 3, "predicted", "probability", 0, 10, {})
        with pytest.raises(EmptyRunError, match="None of the 3 images"):
            analyse(facts, scores, [])

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0.0, "0.000"), (-0.25, "-0.250"), (1.5e-8, "1.5e-08"), (math.nan, "-"), (123456.0, "1.2e+05")],
    )
    def test_numbers(self, value: float, text: str) -> None:
        assert number(value) == text
