from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from camrt.cam import Perturbation
from camrt.datasets import SyntheticShapes
from camrt.evaluation import EvaluationSession, evaluate
from camrt.evaluation.analysis import EmptyRunError
from camrt.evaluation.runner import NoProgress, run
from camrt.evaluation.scores import read_scores
from camrt.evaluation.store import RunFolder
from camrt.explainer import Explainer
from camrt.metrics import METRICS
from tests.evaluation.fixtures import NAMES, open_session, write_small_bundle
from tests.small_network import HEIGHT, WIDTH

FAST = {"metrics": "arcc,mass_iou", "methods": "refinecam,gradcam", "baselines": "random", "batch_size": 4}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Eight shapes in class folders, and their masks."""
    root = tmp_path_factory.mktemp("pictures")
    for index, item in enumerate(SyntheticShapes("test", 8, 64)):
        folder = item.class_name if item.class_name in NAMES else "other shape"
        for kind, pixels in (("images", item.image), ("masks", item.object_mask)):
            (root / kind / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / kind / folder / f"{index}.png")
    return root / "images", root / "masks"


def measure(session: EvaluationSession) -> Any:
    with RunFolder.open(Path(session.config.out), session.identity(), session.chunks) as folder:
        run(session, folder, NoProgress())
        return pq.read_table(folder.finish()).to_pylist(), folder.problems()


class TestRows:
    def test_they_are_what_the_explainer_says(self, bundle: Path, tmp_path: Path) -> None:
        session = open_session(bundle, tmp_path / "run", images=6, **{**FAST, "metrics": None, "seed": 5})
        rows, problems = measure(session)
        assert session.metrics == tuple(METRICS)
        assert len(rows) == 6 * 3 * len(METRICS)
        assert problems == []
        shapes = SyntheticShapes("test", 6, 64)
        pictures = [shapes.item(index) for index in range(4)]
        inputs = session.explainer.preprocess_images([picture.image for picture in pictures])
        explanations = session.explainer.explain(inputs, method="gradcam")
        # Centres of the input's pixels in the pixels of the picture, in whole numbers.
        rows_at, columns_at = ((2 * np.arange(side) + 1) * 64 // (2 * side) for side in (HEIGHT, WIDTH))
        masks = np.stack([picture.object_mask[rows_at[:, None], columns_at] for picture in pictures])
        expected = session.explainer.evaluate(inputs, explanations, tuple(METRICS), masks, seed=5)
        for index, picture in enumerate(pictures):
            own = [row for row in rows if row["item"] == f"test/{index:06d}" and row["method"] == "gradcam"]
            assert [row["metric"] for row in own] == list(METRICS)
            np.testing.assert_array_equal([row["score"] for row in own], [expected[name][index] for name in METRICS])
            row = own[0]
            assert row["group"] == picture.size_range
            assert row["class_index"] == row["predicted"] == explanations[index].class_index
            assert row["probability"] == pytest.approx(explanations[index].probability, abs=1e-7)
            known = picture.class_name in NAMES
            assert row["correct"] is (NAMES[row["predicted"]] == picture.class_name if known else None)
            assert (row["layers"], row["base_method"], row["fusion"]) == ("stage3", None, None)
            assert (row["seed"], row["bundle"]) == (5, session.bundle_sha256)

    def test_explainers_keep_their_fields(self, bundle: Path, tmp_path: Path) -> None:
        session = open_session(bundle, tmp_path / "run", images=2, **{**FAST, "baselines": "random,ones"})
        rows, _ = measure(session)
        fields = [(row["method"], row["base_method"], row["fusion"], row["layers"]) for row in rows[:8:2]]
        assert fields == [
            ("refinecam", "gradcam++", "product", "stage3,stage2,stage1"),
            ("gradcam", None, None, "stage3"),
            ("random", None, None, None),
            ("ones", None, None, None),
        ]
        assert [row["degenerate"] for row in rows[:8:2]][2:] == [False, True]

    def test_the_batch_size_does_not_change_scores(self, bundle: Path, tmp_path: Path) -> None:
        one, _ = measure(open_session(bundle, tmp_path / "a", images=5, **FAST))
        other, _ = measure(open_session(bundle, tmp_path / "b", images=5, **{**FAST, "batch_size": 2}))
        assert [row["item"] for row in one] == [row["item"] for row in other]
        np.testing.assert_allclose([r["score"] for r in one], [r["score"] for r in other], rtol=0, atol=1e-5)

    def test_metrics_run_on_no_more_images_at_a_time(
        self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[int] = []
        for name in ("evaluate", "evaluate_maps"):
            call = getattr(Explainer, name)

            def spy(*arguments: Any, call: Any = call, **options: Any) -> Any:
                sizes.append(options["batch_size"])
                return call(*arguments, **options)

            monkeypatch.setattr(Explainer, name, spy)
        measure(open_session(bundle, tmp_path / "run", images=3, **{**FAST, "batch_size": 2}))
        assert sizes == [2] * 6

    def test_channels_bound_the_methods_that_need_a_run_each(self, bundle: Path, tmp_path: Path) -> None:
        fields = {"metrics": "arcc,coherency", "methods": "scorecam,gradcam", "images": 2}
        few, every = (
            open_session(bundle, tmp_path / str(channels), channels=channels, **fields) for channels in (2, None)
        )
        shapes = SyntheticShapes("test", 2, 64)
        inputs = few.explainer.preprocess_images([shapes.item(index).image for index in range(2)])
        limits = Perturbation(2)
        explanations = few.explainer.explain(inputs, method="scorecam", perturbation=limits)
        expected = few.explainer.evaluate(inputs, explanations, ("arcc", "coherency"), perturbation=limits)
        found, unbounded = ([row["score"] for row in measure(session)[0]] for session in (few, every))
        for index in range(2):
            own = slice(4 * index, 4 * index + 2)
            assert found[own] == pytest.approx([expected[name][index] for name in few.metrics], abs=1e-12)
            assert found[own] != pytest.approx(unbounded[own], abs=1e-6)
            assert found[4 * index + 2 : 4 * index + 4] == unbounded[4 * index + 2 : 4 * index + 4]
        assert few.identity() != every.identity()

    def test_the_true_class(self, bundle: Path, tmp_path: Path) -> None:
        session = open_session(bundle, tmp_path / "run", images=8, class_choice="label", **FAST)
        rows, problems = measure(session)
        shapes = SyntheticShapes("test", 8, 64)
        names = {f"test/{index:06d}": shapes.item(index).class_name for index in range(8)}
        assert {row["item"] for row in rows} == {item for item, name in names.items() if name in NAMES}
        assert all(row["class_index"] == NAMES.index(names[row["item"]]) for row in rows)
        assert {problem.name for problem in problems} == {item for item, name in names.items() if name not in NAMES}

    def test_a_limit_draws_the_same_images_again(self, bundle: Path, tmp_path: Path) -> None:
        chosen = [
            [item.item_id for item in open_session(bundle, tmp_path, images=40, limit=5, seed=seed, **FAST).items]
            for seed in (0, 0, 1)
        ]
        assert chosen[0] == chosen[1] == sorted(chosen[0])
        assert chosen[0] != chosen[2]
        assert len(set(chosen[0])) == 5


class TestBadData:
    def test_it_is_counted_named_and_left_out(self, bundle: Path, pictures: tuple[Path, Path], tmp_path: Path) -> None:
        images, masks = tmp_path / "images", tmp_path / "masks"
        for source, target in zip(pictures, (images, masks), strict=True):
            for path in source.rglob("*.png"):
                (target / path.parent.name).mkdir(parents=True, exist_ok=True)
                (target / path.parent.name / path.name).write_bytes(path.read_bytes())
        whole = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
        (images / "triangle" / "bad.png").write_text("no image")
        (images / "empty class").mkdir()
        (images / "list.txt").write_text("x")
        small, without, odd = whole[0], whole[1], whole[2]
        Image.new("L", (5, 5), 1).save(masks / small)
        (masks / without).unlink()
        (masks / odd).write_bytes(b"no mask")
        Image.new("L", (64, 64), 1).save(masks / "alone.png")
        session = open_session(bundle, tmp_path / "run", data=str(images), masks=str(masks), **FAST)
        rows, late = measure(session)
        problems = [(problem.kind, problem.name) for problem in [*session.dataset.problems, *late]]
        assert sorted(problems) == sorted(
            [
                ("unreadable image", "triangle/bad.png"),
                ("image without a mask", "triangle/bad.png"),
                ("folder without images", "empty class"),
                ("file that is no image", "list.txt"),
                ("unknown class folder", "other shape"),
                ("unusable mask", small),
                ("image without a mask", without),
                ("unusable mask", odd),
                ("mask without an image", "alone.png"),
            ]
        )
        assert sorted({row["item"] for row in rows}) == whole
        for row in rows:
            is_missing = row["metric"] == "mass_iou" and row["item"] in (small, without, odd)
            assert np.isnan(row["score"]) == is_missing

    def test_an_object_that_the_crop_cuts_away(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "i").mkdir()
        (tmp_path / "m").mkdir()
        noise = np.random.default_rng(0).integers(0, 255, (32, 120, 3), np.uint8)
        mask = np.zeros((32, 120), np.uint8)
        mask[:, 0] = 1
        Image.fromarray(noise).save(tmp_path / "i" / "a.png")
        Image.fromarray(mask).save(tmp_path / "m" / "a.png")
        session = open_session(
            bundle, tmp_path / "run", data=str(tmp_path / "i"), masks=str(tmp_path / "m"), preprocess="imagenet", **FAST
        )
        rows, problems = measure(session)
        assert [(problem.kind, problem.name) for problem in problems] == [("object outside the model's view", "a.png")]
        assert {row["metric"] for row in rows if np.isnan(row["score"])} == {"mass_iou"}

    def test_nothing_that_can_be_read(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        for number in range(3):
            (tmp_path / "data" / f"{number}.jpg").write_text("no image")
        session = open_session(bundle, tmp_path / "run", data=str(tmp_path / "data"), metrics="arcc", batch_size=2)
        with pytest.raises(EmptyRunError, match=r"None of the 3 images could be evaluated.*0\.jpg"):
            evaluate(session, "camrt evaluate")
        assert (tmp_path / "run" / "problems.csv").read_text().count("unreadable image") == 3


class TestMemory:
    def test_it_does_not_grow_with_the_number_of_images(self, bundle: Path, tmp_path: Path) -> None:
        """Python's and NumPy's memory at its highest; an image and what belongs to it takes some 50 kB here."""
        measure(open_session(bundle, tmp_path / "warm", images=4, **FAST))
        peaks = []
        for images in (8, 64):
            session = open_session(bundle, tmp_path / str(images), images=images, **FAST)
            with RunFolder.open(Path(session.config.out), session.identity(), session.chunks) as folder:
                tracemalloc.start()
                run(session, folder, NoProgress())
                folder.finish()
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        assert peaks[1] < peaks[0] + 200_000


def test_scores_are_the_rows_as_an_array(bundle: Path, tmp_path: Path) -> None:
    session = open_session(bundle, tmp_path / "run", images=6, **FAST)
    rows, _ = measure(session)
    scores = read_scores(tmp_path / "run" / "measurements.parquet", session.specs, session.metrics)
    assert scores.values.shape == (6, 3, 2)
    for row in rows:
        explainer = [spec.method for spec in scores.explainers].index(row["method"])
        place = scores.items.index(row["item"]), explainer
        np.testing.assert_array_equal(scores.values[place][scores.metrics.index(row["metric"])], row["score"])
        assert scores.degenerate[place] == row["degenerate"]
        assert scores.groups[place[0]] == row["group"]
        np.testing.assert_array_equal(scores.correct[place[0]], np.nan if row["correct"] is None else row["correct"])
