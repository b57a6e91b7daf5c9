"""The embedded default model: a small residual network whose stages end at strides 4, 8, 16 and 32."""

from __future__ import annotations

from torch import Tensor, nn

STEM_WIDTH = 12
STAGE_WIDTHS = (20, 40, 72, 112)


class ConvUnit(nn.Module):
    """3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, outputs, h / stride, w / stride)."""
        return self.relu(self.norm(self.conv(x)))


class ResidualBlock(nn.Module):
    """ReLU(x + norm(conv(unit(x)))), of one width and resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.unit = ConvUnit(width, width, 1)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same shape."""
        return self.relu(x + self.norm(self.conv(self.unit(x))))


class Stage(nn.Module):
    """Halves the resolution, then one residual block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = ConvUnit(inputs, outputs, 2)
        self.block = ResidualBlock(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, outputs, h / 2, w / 2)."""
        return self.block(self.down(x))


class ShapesNet(nn.Module):
    """Stem at stride 2, four stages at strides 4, 8, 16 and 32, global average pooling and one linear layer.

    The linear layer on pooled activations makes the last stage usable for plain CAM; small kernels and few strides keep
    the finer stages sharp for methods that combine layers.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = ConvUnit(3, STEM_WIDTH, 2)
        self.stage1 = Stage(STEM_WIDTH, STAGE_WIDTHS[0])
        self.stage2 = Stage(STAGE_WIDTHS[0], STAGE_WIDTHS[1])
        self.stage3 = Stage(STAGE_WIDTHS[1], STAGE_WIDTHS[2])
        self.stage4 = Stage(STAGE_WIDTHS[2], STAGE_WIDTHS[3])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(STAGE_WIDTHS[3], classes)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) normalised image to (N, K) logits."""
        features = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(image)))))
        return self.head(self.pool(features).flatten(1))


class PlainStage(nn.Module):
    """Two convolutions, then max-pooling to half the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = ConvUnit(inputs, outputs, 1)
        self.second = ConvUnit(outputs, outputs, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, outputs, h / 2, w / 2)."""
        return self.pool(self.second(self.first(x)))


class PlainNet(nn.Module):
    """A network of another design, to see whether results depend on it: max-pooling, no residuals, two linear layers.

    Stem at stride 2, four stages whose activations are at strides 2, 4, 8 and 16, two convolutions at stride 32.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (16, 32, 56, 88, 128)
        self.stem = ConvUnit(3, 12, 2)
        self.stages = nn.Sequential(*[PlainStage(i, o) for i, o in zip((12, *widths[:3]), widths[:4], strict=True)])
        self.last = nn.Sequential(ConvUnit(widths[3], widths[4], 1), ConvUnit(widths[4], widths[4], 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Linear(widths[4], 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) normalised image to (N, K) logits."""
        return self.head(self.pool(self.last(self.stages(self.stem(image)))).flatten(1))


NETWORKS = {"shapes_cnn": ShapesNet, "plain_cnn": PlainNet}
