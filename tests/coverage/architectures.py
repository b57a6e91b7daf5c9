"""The list of architectures that the coverage tests and the table in docs/coverage.md run over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tests.models import Exporter

Library = Literal["torchvision", "timm"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row: the smallest member of a family.

    Attributes:
        library: where the network's code comes from.
        name: its name there; a class where it begins with a capital letter.
        family: what people call the design.
        size: height and width of the images of the check; small, or what the design needs.
        arguments: of its constructor.
        default: the exporter that the default test run checks it with; the others are slow tests. None where that takes
            long, or where tests.parity has it in the default run.
        conditioned: images of the check whose values its biases are moved for, until none is near a kink
            (tests.conditioning).
    """

    library: Library
    name: str
    family: str
    size: int = 64
    arguments: dict[str, Any] = field(default_factory=dict)
    default: Exporter | None = "torchscript"
    conditioned: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """Library and name."""
        return f"{self.library}-{self.name}"


def _row(
    library: Library, name: str, family: str, size: int = 64, default: Exporter | None = "torchscript", **arguments: Any
) -> Architecture:
    return Architecture(library, name, family, size, arguments, default, _CONDITIONED.get(name, ()))


# Large or without normalisation: some value is near a kink in every image. The images of vgg11_bn are those of the four
# whose max pooling windows behind a target layer have no near tie: in image 1 two values of one differ by 3e-8 standard
# deviations, less than float32 resolves, and the gradient goes to either. Shifted biases do not help there.
_CONDITIONED: dict[str, tuple[int, ...]] = {
    "vgg11": (0, 1),
    "vgg11_bn": (0, 3),
    "wide_resnet50_2": (0, 1),
    "resnext50_32x4d": (0, 1),
    "squeezenet1_1": (0, 1),
    "inception_v3": (0, 1),
    "cspdarknet53": (0, 1),
    "xception41": (0, 1),
}
_GOOGLE = {"aux_logits": False, "init_weights": False}
_TINY_VIT = {"image_size": 64, "patch_size": 16, "num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}

ARCHITECTURES = (
    _row("torchvision", "alexnet", "AlexNet", 224, None),
    _row("torchvision", "vgg11", "VGG", 224, None),
    _row("torchvision", "vgg11_bn", "VGG with BatchNormalization", 224, None),
    _row("torchvision", "resnet18", "ResNet", default="dynamo"),
    _row("torchvision", "resnext50_32x4d", "ResNeXt", default=None),
    _row("torchvision", "wide_resnet50_2", "Wide-ResNet", default=None),
    _row("torchvision", "densenet121", "DenseNet", default=None),
    _row("torchvision", "squeezenet1_1", "SqueezeNet"),
    _row("torchvision", "googlenet", "GoogLeNet", **_GOOGLE),
    _row("torchvision", "inception_v3", "Inception-v3", 96, None, **_GOOGLE),
    _row("torchvision", "mobilenet_v2", "MobileNetV2"),
    _row("torchvision", "mobilenet_v3_small", "MobileNetV3"),
    _row("torchvision", "mnasnet0_5", "MNASNet"),
    _row("torchvision", "shufflenet_v2_x0_5", "ShuffleNetV2"),
    _row("torchvision", "efficientnet_b0", "EfficientNet"),
    _row("torchvision", "efficientnet_v2_s", "EfficientNetV2", default=None),
    _row("torchvision", "regnet_y_400mf", "RegNet"),
    _row("torchvision", "convnext_tiny", "ConvNeXt", default=None),
    _row("torchvision", "swin_t", "Swin", 112),
    _row("torchvision", "swin_v2_t", "Swin v2", 128, None),
    _row("torchvision", "VisionTransformer", "ViT, three blocks", default="dynamo", **_TINY_VIT),
    _row("torchvision", "vit_b_16", "ViT", 64, None, image_size=64),
    _row("torchvision", "maxvit_t", "MaxViT", 224, None),
    _row("timm", "repvgg_a0", "RepVGG"),
    _row("timm", "ghostnet_050", "GhostNet"),
    _row("timm", "hrnet_w18_small", "HRNet"),
    _row("timm", "cspdarknet53", "CSPDarknet", default=None),
    _row("timm", "nfnet_l0", "NFNet", default=None),
    _row("timm", "resnest14d", "ResNeSt"),
    _row("timm", "efficientformer_l1", "EfficientFormer", 224, None),
    _row("timm", "poolformer_s12", "PoolFormer"),
    _row("timm", "resnetv2_50x1_bit", "BiT (ResNetV2)", default=None),
    _row("timm", "xception41", "Xception", default=None),
    _row("timm", "mobileone_s0", "MobileOne", default=None),
    _row("timm", "edgenext_xx_small", "EdgeNeXt"),
    _row("timm", "vit_tiny_patch16_224", "ViT (timm)", 96, img_size=96),
    _row("timm", "swin_tiny_patch4_window7_224", "Swin (timm)", 112, None, img_size=112),
)
