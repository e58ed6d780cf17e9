"""Models on the Hugging Face Hub: `from_pretrained`, `save_pretrained` and `push_to_hub`.

What is on the hub is a model directory, as `vimpac.checkpoints.model_files` describes it, with a
model card. So every command reads a downloaded one.

The three methods have the arguments of huggingface_hub's `ModelHubMixin`, and call the functions
that the mixin calls. Its class is not used, for three reasons. It must be there when a model class
is defined, so that the package would be required, and importing it takes 0.2 s. It keeps the
arguments of `__init__` in a `config.json`, where we have `model.json`. And it falls back to a
pickled file.
"""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from vimpac.checkpoints.checksums import CHECKSUMS
from vimpac.checkpoints.model_card import CARD
from vimpac.checkpoints.protocol import DESCRIPTION, WEIGHTS
from vimpac.errors import UsageError, VimpacError
from vimpac.paths import local_path

EXTRA = "vimpac-kernels[hub]"
_FILES = [DESCRIPTION, WEIGHTS, CHECKSUMS]  # no other file is downloaded
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WHAT_A_NAME_IS = "give a model directory, or the id of a model on the hub, which is owner/name"

Model = TypeVar("Model", bound="HubModel")
Result = TypeVar("Result")


class HubModel:
    """The methods of a model class, which names the module that reads and writes its directories.

    Of that module `read_any(folder)` returns a model and its description, and
    `save_any(model, folder, card=name, **facts)` writes one.
    """

    _files: ClassVar[str]
    # What model.json says that the network does not know: a classifier's classes, the data that a
    # model was trained on, the words of SimVTP. Whoever reads a model keeps it here.
    facts: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Model:
        """Reads a model from a directory or from the Hugging Face Hub.

        From the hub come `model.json`, `model.safetensors` and their checksums only; nothing is
        unpickled. They stay in the hub's cache and are not downloaded twice.

        Args:
            pretrained_model_name_or_path: A model directory, such as a checkpoint of a run; or,
                if there is no such directory, the id of a model on the hub, "owner/name".
            force_download: Download it again, although it is in the cache.
            token: The token of a private model; None takes the one of `hf auth login`, False none.
            cache_dir: The cache; None takes the hub's own.
            local_files_only: Download nothing: take what is in the cache.
            revision: A branch, a tag or a commit; None takes the branch `main`.

        Returns:
            The model, on the CPU, in evaluation mode. Call `train()` before training it.

        Raises:
            UsageError: It is neither, it holds a model of another class, or a revision is given
                for a directory.
            VimpacError: The hub refuses or cannot be reached, a file is damaged, or the package
                huggingface_hub is not installed.
        """
        name = pretrained_model_name_or_path
        if local_path(name).exists():
            if revision is not None:
                raise UsageError(f"{name} is a directory, which has no revision {revision!r}")
            return cls._of_directory(local_path(name))
        if not isinstance(name, str) or not _HUB_ID.fullmatch(name):
            raise UsageError(f"{name} does not exist: {_WHAT_A_NAME_IS}")
        hub = _hub(f"{name} is no directory, and a model on the hub")
        folder = _asked(
            f"there is no directory {name}, and the model {name}",
            lambda: hub.snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=_FILES,
                library_name="vimpac-kernels",
            ),
        )
        try:
            return cls._of_directory(Path(folder))
        except UsageError as error:
            raise UsageError(f"{name} on the hub: {error}") from None
        except VimpacError as error:
            hint = "force_download=True downloads it again"
            raise VimpacError(f"{name} on the hub: {error}; {hint}") from None

    def save_pretrained(self, save_directory: str | Path, **facts: Any) -> None:
        """Writes the model and a model card; the directory appears complete or not at all.

        Args:
            save_directory: A directory that does not exist yet.
            facts: What the network does not know, in place of `self.facts`: `classes`, the names
                of a classifier's classes, and `data`; of a model of SimVTP `frame_step`,
                `masked_cells` and `words`.

        Raises:
            UsageError: If `save_directory` exists.
            ValueError: If a classifier has another number of classes, or two of one name.
        """
        self._save(save_directory, "owner/name", facts)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload a model of vimpac",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        **facts: Any,
    ) -> str:
        """Uploads what `save_pretrained` writes, in one commit; makes the repository if needed.

        A model card that is there already stays.

        Args:
            repo_id: "owner/name".
            commit_message: Of the commit.
            private: Whether a repository that is made is private; None: what its owner has chosen.
            token: None takes the one of `hf auth login`.
            branch: It must exist; None is `main`.
            create_pr: Propose the commit as a pull request.
            facts: As for `save_pretrained`.

        Returns:
            The URL of the commit.

        Raises:
            UsageError: `repo_id` is none.
            ValueError: As `save_pretrained`.
            VimpacError: The hub refuses or cannot be reached, or the package huggingface_hub is
                not installed.
        """
        if not isinstance(repo_id, str) or not _HUB_ID.fullmatch(repo_id):
            raise UsageError(f"{repo_id!r} is no id of a model on the hub: give owner/name")
        api = _hub(f"uploading {repo_id}").HfApi(token=token, library_name="vimpac-kernels")
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self._save(folder, repo_id, facts)  # first: what is wrong is found here

            def upload() -> str:
                repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                has_card = api.file_exists(repo, CARD, revision=branch)
                commit = api.upload_folder(
                    repo_id=repo,
                    folder_path=folder,
                    commit_message=commit_message,
                    revision=branch,
                    create_pr=create_pr,
                    ignore_patterns=[CARD] if has_card else None,
                )
                return commit.pr_url or commit.commit_url

            return _asked(repo_id, upload)

    def _save(self, folder: str | Path, name: str, facts: dict[str, Any]) -> None:
        """`save_pretrained`; the model card says how to read the model of this name."""
        save: Callable[..., None] = importlib.import_module(self._files).save_any
        save(self, folder, card=name, **{**self.facts, **facts})

    @classmethod
    def _of_directory(cls: type[Model], folder: Path) -> Model:
        """The model in a directory, which must be of this class."""
        model, description = importlib.import_module(cls._files).read_any(folder)
        if not isinstance(model, cls):
            found = f"{description.kind}, which is a {type(model).__name__}"
            raise UsageError(f"{folder} holds a {found}, no {cls.__name__}")
        model.eval()  # type: ignore[attr-defined]  # every class is a Module, too
        return model


def _hub(what: str) -> Any:
    """The package huggingface_hub, without which there is no hub."""
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        needs = f"needs the package 'huggingface_hub': pip install '{EXTRA}'"
        raise VimpacError(f"{what} {needs}") from None


def _asked(what: str, ask: Callable[[], Result]) -> Result:
    """What the hub answers; whatever goes wrong is one line.

    Its package raises errors of its own, of httpx and of the system, and changes them often.
    """
    try:
        return ask()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VimpacError(f"{what} on the hub: {reason:.400}") from error
