"""``camrt explain --server``: the same command with a server in place of a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from camrt.errors import CamrtError, InvalidInputError

if TYPE_CHECKING:
    from PIL import Image

    from camrt.cli._overlays import Request
    from camrt.client import ExplainerClient
    from camrt.explanation import Explanation
    from camrt.preprocess import Preprocessing


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to reach a server.

    Attributes:
        target: host:port.
        model: its name on the server; None is the only one.
        tls: whether to encrypt; set by any of the certificates too.
        authority, certificate, key: PEM files, see camrt.client.TlsOptions.
        token_file: file with the bearer token.
        timeout: seconds an image may take.
    """

    target: str
    model: str | None
    tls: bool
    authority: Path | None
    certificate: Path | None
    key: Path | None
    token_file: Path | None
    timeout: float


class RemoteSource:
    """Explanations of image files from a server. Files travel as they are.

    Raises:
        CamrtError: the server cannot be reached, or refuses.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._model = options.model or ""
        self._client = _connect(options)
        details = self._client.get_model(self._model)
        self._class_names = details.class_names or ()
        self._preprocessing = details.preprocessing
        self._target = options.target

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How the server's model sees images."""
        return self._preprocessing

    def explanations(self, path: Path, image: Image.Image, request: Request) -> list[Explanation]:  # noqa: ARG002
        """What the server says about the file at ``path``. An image that it refuses is an ImageError here too."""
        return self._client.explain(
            path,
            class_indices=None if request.classes is None else [self._index(item) for item in request.classes],
            top_k=request.top_k if request.top_k != 1 else None,
            output_size=request.output_size,
            target_layers=request.layers,
            model=self._model,
            **request.options,
        )

    def _index(self, item: int | str) -> int:
        """The index of a class: a message names classes by indices or names, the command line mixes them."""
        if isinstance(item, int):
            return item
        if item not in self._class_names:
            from camrt.errors import ClassIndexError

            listed = ", ".join(self._class_names[:20]) or "none has a name"
            raise ClassIndexError(f"No class of the server's model is called {item!r}.", f"The classes: {listed}.")
        return self._class_names.index(item)


def _connect(options: ServerOptions) -> ExplainerClient:
    try:
        from camrt.client import ExplainerClient, TlsOptions
    except ModuleNotFoundError as error:
        raise CamrtError(f"--server needs {error.name}.", "Install it: pip install 'camrt[client]'.") from error
    encrypted = options.tls or options.authority or options.certificate or options.key
    tls = TlsOptions(options.authority, options.certificate, options.key) if encrypted else None
    return ExplainerClient(options.target, tls=tls, token=_token(options.token_file), timeout=options.timeout)


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InvalidInputError(f"Cannot read the token in {path}: {reason}.", "Check the file.") from error
