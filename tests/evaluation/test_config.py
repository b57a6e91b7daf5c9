from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from camrt.bundle import Bundle
from camrt.errors import LayerNotFoundError, MethodNotFoundError
from camrt.evaluation import ConfigError, EvaluationConfig, read_config
from camrt.evaluation.explainers import make_explainers
from camrt.evaluation.optional import MissingPackageError, require
from camrt.explainer import embedded_bundle_path

MANIFEST = Bundle.open(embedded_bundle_path()).manifest
STAGES = ("stage4", "stage3", "stage2", "stage1")


def labels(**fields: Any) -> list[str]:
    fields = fields if "synthetic" in fields else {"data": "images", **fields}
    return [spec.label for spec in make_explainers(EvaluationConfig.from_mapping(fields), MANIFEST)]


class TestValues:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"imagse": 3}, "Unknown key 'imagse'"),
            ({"images": "many"}, "images is 'many'. Give an integer, 1 or more"),
            ({"images": 0}, "images is 0"),
            ({"images": True}, "images is True"),
            ({"seed": -1}, "seed is -1"),
            ({"synthetic": "yes"}, "synthetic is 'yes'. Give true or false"),
            ({"methods": [3]}, r"methods is 3. Give a text"),
            ({"methods": []}, "methods is \\[\\]"),
            ({"metrics": {"arcc": 1}}, "metrics is {'arcc': 1}"),
            ({"class_choice": "best"}, "class_choice is 'best'. Choose one of predicted, label"),
            ({"target": "loss"}, "target is 'loss'. Choose one of probability, logit"),
            ({"name": ""}, "name is ''"),
            ({"layers": ["all,stage1"]}, "layers mixes all with names"),
            ({"layers": []}, "layers is empty"),
            ({"explainers": "gradcam"}, "explainers is 'gradcam'"),
            ({"explainers": [{"methud": "gradcam"}]}, r"Unknown key explainers\[0\].methud"),
            ({"explainers": [{"baseline": "random", "fusion": "max"}]}, r"explainers\[0\] is"),
            ({"explainers": [{"method": "gradcam"}, {"method": 3}]}, r"explainers\[1\].method is 3"),
            ({"explainers": [{"method": "gradcam", "layers": "all,top"}]}, r"explainers\[0\].layers"),
            ({"explainers": [{"method": "gradcam"}], "methods": "gradcam"}, "Give one of them"),
            ({"data": "d", "synthetic": True}, "Give one of them"),
            ({"masks": "m", "synthetic": True}, "masks belong"),
        ],
    )
    def test_what_is_wrong_is_named(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            EvaluationConfig.from_mapping({"synthetic": True, **fields})

    def test_something_to_evaluate_on(self) -> None:
        with pytest.raises(ConfigError, match="nothing to evaluate on"):
            EvaluationConfig.from_mapping({})

    def test_a_seed_that_the_table_cannot_hold(self) -> None:
        assert EvaluationConfig.from_mapping({"data": "d", "seed": 2**63 - 1}).seed == 2**63 - 1
        with pytest.raises(ConfigError, match=f"seed is {2**63}.*{2**63 - 1} or less"):
            EvaluationConfig.from_mapping({"data": "d", "seed": 2**63})

    @pytest.mark.parametrize("layers", [[192], [None], [], ["stage1", 2]])
    def test_layers_of_an_explainer_that_are_no_names(self, layers: list[Any]) -> None:
        with pytest.raises(ConfigError, match=r"explainers\[0\]\.layers"):
            EvaluationConfig.from_mapping({"data": "d", "explainers": [{"method": "gradcam", "layers": layers}]})

    def test_none_is_left_out_and_names_are_split(self) -> None:
        config = EvaluationConfig.from_mapping({"data": "d", "seed": None, "metrics": ["arcc, road", "arcc"]})
        assert config == EvaluationConfig(data="d", metrics=("arcc", "road"))


class TestFiles:
    def read(self, tmp_path: Path, text: str | bytes) -> dict[str, Any]:
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_config(path)

    def test_a_yaml_file(self, tmp_path: Path) -> None:
        text = "data: images\nseed: 3\nexplainers:\n- {baseline: random}\n"
        config = EvaluationConfig.from_mapping(self.read(tmp_path, text))
        assert (config.data, config.seed) == ("images", 3)
        assert [spec.label for spec in make_explainers(config, MANIFEST)] == ["random"]

    def test_layers_in_a_yaml_file(self, tmp_path: Path) -> None:
        fields = self.read(tmp_path, "data: d\nlayers: [all, [stage4, stage1], 'stage2,stage3']\n")
        assert EvaluationConfig.from_mapping(fields).layers == (("all",), ("stage4", "stage1"), ("stage2", "stage3"))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("- a\n- b\n", "no YAML mapping"),
            ("", "no YAML mapping"),
            ("a: [1", "is no YAML"),
            ("a: 2026-99-99", "is no YAML"),
            (b"\xff\xfe\x00", "is no YAML"),
            ("a: !!python/object/apply:os.system ['true']", "is no YAML"),
        ],
    )
    def test_other_files(self, tmp_path: Path, text: str | bytes, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            self.read(tmp_path, text)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"Cannot read .*none\.yaml"):
            read_config(tmp_path / "none.yaml")

    def test_a_missing_package_is_told_with_the_command(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "yaml", None)
        with pytest.raises(MissingPackageError, match=r"pyyaml, which is not installed. Run: pip install 'camrt\[eval"):
            self.read(tmp_path, "a: 1")

    def test_a_package_that_misses_another_is_no_missing_package(self, tmp_path: Path, monkeypatch) -> None:
        (tmp_path / "halfway.py").write_text("import nowhere_to_be_found")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
            require("halfway")


class TestExplainers:
    def test_a_folder_by_default(self) -> None:
        assert labels() == [
            "refinecam(gradcam++, product) all",
            "gradcam stage4",
            "gradcam++ stage4",
            "layercam stage4",
        ]

    def test_the_grid(self) -> None:
        found = labels(methods="refinecam,gradcam", base_methods="gradcam,layercam", fusions="mean", layers="all,each")
        assert found == [
            "refinecam(gradcam, mean) all",
            "refinecam(layercam, mean) all",
            *(f"gradcam {stage}" for stage in STAGES),
        ]

    def test_names_of_layers(self) -> None:
        found = labels(methods="refinecam,gradcam", layers=["stage1,stage4", "top"], baselines="ones")
        assert found == [
            "refinecam(gradcam++, product) stage4+stage1",
            "gradcam stage4",
            "gradcam stage1",
            "ones",
        ]

    def test_the_same_layers_under_two_names_are_one_explainer(self) -> None:
        assert labels(methods="refinecam", layers=["all", ",".join(STAGES)]) == ["refinecam(gradcam++, product) all"]

    def test_the_benchmark(self) -> None:
        found = labels(synthetic=True)
        assert len(found) == len(set(found)) == 6 * 4 + 6 + 5 + 2 + 4
        assert found[-4:] == ["random", "ones", "half", "center"]
        assert len(labels(synthetic=True, baselines="none")) == 37
        assert labels(synthetic=True, methods="gradcam") == ["gradcam stage4"]

    @pytest.mark.parametrize(
        ("fields", "kind"),
        [
            ({"methods": "magic"}, MethodNotFoundError),
            ({"base_methods": "magic"}, MethodNotFoundError),
            ({"fusions": "magic"}, MethodNotFoundError),
            ({"baselines": "magic"}, MethodNotFoundError),
            ({"layers": "stage9"}, LayerNotFoundError),
            ({"methods": "gradcam", "layers": "stage9"}, LayerNotFoundError),
        ],
    )
    def test_unknown_names(self, fields: dict[str, Any], kind: type[Exception]) -> None:
        with pytest.raises(kind, match=r"magic|stage9"):
            labels(**fields)


def test_layers_of_a_method_come_coarse_to_fine_in_whatever_order_they_are_asked_for() -> None:
    asked = [
        {"method": "layercam", "layers": "stage1"},
        {"method": "gradcam", "layers": "stage2"},
        {"method": "layercam", "layers": "stage4"},
        {"method": "gradcam", "layers": "stage3"},
    ]
    expected = [("layercam", "stage4"), ("layercam", "stage1"), ("gradcam", "stage3"), ("gradcam", "stage2")]
    config = EvaluationConfig.from_mapping({"data": "images", "explainers": asked})
    assert [(spec.method, *spec.layers) for spec in make_explainers(config, MANIFEST)] == expected
