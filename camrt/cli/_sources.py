"""Where ``camrt explain`` has its explanations from: an explainer in this process, or (``_remote``) a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image
    from rich.progress import Progress

    from camrt.cli._overlays import Request
    from camrt.explainer import Explainer
    from camrt.explanation import Explanation
    from camrt.preprocess import Preprocessing


class Source(Protocol):
    """Where explanations come from."""

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How the model sees images."""
        ...

    def explanations(self, path: Path, image: Image.Image, request: Request) -> list[Explanation]:
        """Of one image, at ``path`` and decoded: one explanation a class."""
        ...


@dataclass(frozen=True, slots=True)
class LocalSource:
    """An explainer in this process.

    Attributes:
        explainer: explains.
        channels: most channels of a layer that scorecam and ablationcam try.
        bar: shows how far they are.
    """

    explainer: Explainer
    channels: int | None
    bar: Progress

    @property
    def preprocessing(self) -> Preprocessing | None:
        """See Source."""
        return self.explainer.preprocessing

    def explanations(self, path: Path, image: Image.Image, request: Request) -> list[Explanation]:  # noqa: ARG002
        """See Source."""
        from camrt.cam import Perturbation

        task = self.bar.add_task("channels", total=None, visible=False)

        def tell(done: int, total: int) -> None:
            """Only scorecam and ablationcam do: the line shows up with their first run."""
            self.bar.update(task, completed=done, total=total, visible=True)

        try:
            return self.explainer.explain_images(
                [image],
                request.classes,
                top_k=request.top_k,
                output_size=request.output_size,
                target_layers=request.layers,
                perturbation=Perturbation(self.channels, progress=tell),
                **request.options,
            )
        finally:
            self.bar.remove_task(task)
