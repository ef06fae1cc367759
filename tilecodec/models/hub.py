"""Fetches the authors' checkpoints from their hub, through the hub's own client, and converts them.

The client resumes and caches downloads and honours its usual variables (HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN,
HTTPS_PROXY). Nothing here goes round it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from tilecodec.errors import HubError, StorageError, TargetExistsError, UsageError
from tilecodec.model.config import DiTICConfig, official_config
from tilecodec.model.record import hash_file, read_record
from tilecodec.model.weights import FILE, OFFICIAL, models_folder
from tilecodec.models.base import FOLDERS, WEIGHTS, read_config
from tilecodec.models.card import LICENCE
from tilecodec.models.checkpoint import Weights, open_checkpoint
from tilecodec.models.convert import StoredType, check_conversion_memory, check_name, convert_model
from tilecodec.models.fit import BASE_REPO, no_auxiliary
from tilecodec.models.room import GIB, check_disk

REPO: Final = "JunqiShi/DiT-IC"
"""Where the authors publish their checkpoints."""
SUFFIXES: Final = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
_POINT: Final = r"(?:^|[^a-z0-9])(?:q|quality|rate|point|rate[_\- ]?point)[_\- ]?{}(?![0-9])"
_LOCAL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
"""Numbers of errors that are this machine's, not the network's."""

Confirm = Callable[[str], bool]
"""Called with what is about to be downloaded, and under which terms; whether to go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PullReport:
    """What a pull found or made."""

    name: str
    sha256: str
    path: str
    """The model's folder."""
    bytes: int
    """Of the model file."""
    repository: str
    revision: str
    """Commit of the repository."""
    file: str
    """Within the repository."""
    converted: bool
    """Whether this call made the model; otherwise it was there."""
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository."""

    bytes: int | None
    sha256: str | None
    """As the hub states it, of large files."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository's files."""

    repository: str
    revision: str
    """Commit."""
    files: dict[str, HubFile]
    cached: bool
    """Whether these are the files in the cache, because the hub was not reached."""


def pull_model(
    name: str,
    *,
    file: str | None = None,
    repository: str = REPO,
    revision: str | None = None,
    base: str | os.PathLike[str] | None = None,
    base_repository: str = BASE_REPO,
    elic: str | os.PathLike[str] | None = None,
    weights: Weights = "ema",
    dtype: StoredType | None = None,
    calibration: str | os.PathLike[str] | None = None,
    config: DiTICConfig | None = None,
    overwrite: bool = False,
    confirm: Confirm | None = None,
    say: Callable[[str], None] | None = None,
    progress: bool = True,
) -> PullReport:
    """Fetches a checkpoint and converts it into this machine's models. One that is there already is left as it is.

    Args:
        name: ``dit-ic-q1`` to ``dit-ic-q4``; with ``file``, any name the model shall have.
        file: the checkpoint's path in the repository; found by the rate point's name unless given.
        repository: of the checkpoint.
        revision: branch, tag or commit; the default branch unless given.
        base: see :func:`~tilecodec.models.convert.convert_model`. A raw checkpoint without it gets ``base_repository``.
        base_repository: of the base's weights.
        elic: see :func:`~tilecodec.models.convert.convert_model`, likewise the next four.
        weights: which set of a raw checkpoint.
        dtype: of the converted weights, ``fp32`` unless given; a model that is there may have either.
        calibration: folder of pictures.
        config: the network's config.
        overwrite: makes the model anew.
        confirm: asked before a download.
        say: called with a word on what is going on.
        progress: whether the hub's client shows its progress bars.

    Raises:
        HubError: the hub cannot be reached and nothing is cached, or it has no such repository, revision or file.
        TargetExistsError: a model of this name is there that came from elsewhere, or is damaged.
        StorageError: too little room for the download, or a cache that cannot be written to.
        UsageError: no such name, or the terms were not accepted.
        TileCodecError: see :func:`~tilecodec.models.convert.convert_model`.
    """
    tell = say or (lambda _: None)
    if file is None and name not in OFFICIAL:
        raise UsageError(
            "no such model to pull", got=name, expected=list(OFFICIAL), where="name", hint="Or give --file"
        )
    check_name(name)
    wanted = {"repository": repository, "file": file, "revision": revision, "dtype": dtype}
    there = _there(name, wanted) if not overwrite else None
    if there is not None:
        return there
    check_conversion_memory(config or (official_config() if base is None else read_config(Path(base))))
    with _client(progress):
        listing = _listing(repository, revision, name, tell)
        chosen = file if file is not None else pick_file(listing, name)
        if chosen not in listing.files:
            raise _no_file(listing, f"there is no file {chosen!r}")
        path = _fetch(listing, chosen, revision, name, confirm, tell)
        sha256 = hash_file(path)
        stated = listing.files[chosen].sha256
        if stated is not None and stated != sha256:
            _discard(path)  # the client would take it again, whatever is asked for
            hint = "It was removed from the cache: pull again"
            raise HubError("the download is damaged", got=sha256, expected=stated, where=path, hint=hint)
        source = {
            "checkpoint_sha256": sha256,
            "repository": repository,
            "revision": listing.revision,
            "file": chosen,
        }
        opened = open_checkpoint(path, weights=weights)
        if base is None and opened.kind == "lora":
            if elic is None and not any(name.startswith("aux_codec.") for name in opened.tensors):
                raise no_auxiliary(opened)  # before gigabytes of the base
            below = _listing(base_repository, None, name, tell)
            base = _fetch_base(below, confirm, tell)
            source |= {"base": base_repository, "base_revision": below.revision}
    tell(f"converting {chosen}")
    report = convert_model(
        path,
        alias=name,
        base=base,
        elic=elic,
        weights=weights,
        dtype=dtype or "fp32",
        calibration=calibration,
        config=config,
        source=source,
        overwrite=overwrite,
        say=say,
    )
    return PullReport(
        name=name,
        sha256=report.sha256,
        path=report.path,
        bytes=report.bytes,
        repository=repository,
        revision=listing.revision,
        file=chosen,
        converted=True,
        remarks=report.remarks,
    )


def _there(name: str, wanted: Mapping[str, str | None]) -> PullReport | None:
    """The model of that name, if it is on this machine and came from where it is wanted from."""
    model = models_folder() / name / FILE
    if not model.is_file():
        return None
    record = read_record(model)
    if record is not None and record.size != model.stat().st_size:
        raise TargetExistsError(
            "the model of this name that is there is damaged",
            got=f"{model.stat().st_size:,} bytes",
            expected=f"{record.size:,} bytes",
            where=model,
            hint="Give --overwrite to replace it",
        )
    source = {} if record is None else record.source
    different = {k: source.get(k) for k, v in wanted.items() if v is not None and not _same(source.get(k), v)}
    if record is None or different:
        raise TargetExistsError(
            "a model of this name is there that came from elsewhere",
            got=different or "no record of its source",
            expected={k: v for k, v in wanted.items() if v is not None},
            where=model,
            hint="Give --overwrite to replace it",
        )
    return PullReport(
        name=name,
        sha256=record.sha256,
        path=str(model.parent),
        bytes=record.size,
        repository=source["repository"],
        revision=str(source.get("revision")),
        file=str(source.get("file")),
        converted=False,
        remarks=("It was there already; --overwrite makes it anew.",),
    )


def _same(known: object, wanted: str) -> bool:
    """Whether a recorded value is the wanted one; the commit that was taken may be asked for by its beginning."""
    return known == wanted or (isinstance(known, str) and len(wanted) >= 7 and known.startswith(wanted))


# --- which file


def pick_file(listing: Listing, name: str) -> str:
    """The checkpoint of a rate point among a repository's files.

    Args:
        listing: the repository.
        name: ``dit-ic-qN``.

    Raises:
        HubError: none, or more than one; the message lists the files and asks for ``--file``.
    """
    point = re.compile(_POINT.format(name.removeprefix("dit-ic-q")), re.IGNORECASE)
    found = [f for f in listing.files if f.lower().endswith(SUFFIXES) and point.search(f)]
    # of several forms of one checkpoint: the merged before the raw, safetensors before pickles
    for better in (lambda f: "merge" in f.lower(), lambda f: f.lower().endswith(".safetensors")):
        preferred = [f for f in found if better(f)]
        if len(found) > 1 and preferred:
            found = preferred
    if len(found) != 1:
        problem = f"no file is named after {name}" if not found else f"several files are named after {name}"
        raise _no_file(listing, problem, found)
    return found[0]


def _no_file(listing: Listing, problem: str, found: list[str] | None = None) -> HubError:
    shown = found or [f for f in listing.files if f.lower().endswith(SUFFIXES)] or list(listing.files)
    lines = [f"  {f}{_size(listing.files[f].bytes)}" for f in sorted(shown)]
    where = f"{listing.repository}, revision {listing.revision[:12]}"
    return HubError(
        problem,
        got=f"{len(listing.files)} files",
        expected="one checkpoint",
        where=where + (" (cached files only)" if listing.cached else ""),
        hint="\n".join(["Choose one with --file:", *lines]),
    )


def _size(count: int | None) -> str:
    return "" if count is None else f"  ({count / GIB:.2f} GiB)" if count >= GIB // 100 else f"  ({count:,} bytes)"


# --- the hub's client


@contextmanager
def _client(progress: bool) -> Iterator[None]:
    """The hub's client, with or without its progress bars."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silenced = not progress and not are_progress_bars_disabled()
    if silenced:
        disable_progress_bars()
    try:
        yield
    finally:
        if silenced:
            enable_progress_bars()


def _failures() -> tuple[type[BaseException], ...]:
    """What the client raises. Its transport's errors are those that its own HTTP error derives from.

    The last line are those of answers that are no hub's (a login page's), and of addresses that are none.
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    transport = HfHubHTTPError.__mro__[1]
    known = (OSError, EntryNotFoundError, transport, RuntimeError)
    return (*known, ValueError, KeyError, TypeError, AttributeError, ImportError)


def _listing(repository: str, revision: str | None, name: str, say: Callable[[str], None]) -> Listing:
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        from huggingface_hub import HfApi

        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    except HFValidationError as error:
        raise UsageError(
            "this is no repository's name", got=repository, expected="OWNER/NAME", where="--repo"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError("the repository has no such revision", got=revision, where=repository) from error
    except RepositoryNotFoundError as error:
        hint = "Check the name; if it asks for a login, give the hub's token in HF_TOKEN"
        raise HubError(
            "there is no such repository, or it is not public", got=repository, where=_hub(), hint=hint
        ) from error
    except _failures() as error:
        cached = _cached_listing(repository, revision)
        if cached is None:
            raise _unreachable(error, repository, name) from error
        say("the hub was not reached: using the files in its cache")
        return cached
    files = {s.rfilename: HubFile(s.size, None if s.lfs is None else s.lfs.sha256) for s in info.siblings or []}
    return Listing(repository, info.sha or revision or "", files, cached=False)


def _cached_listing(repository: str, revision: str | None) -> Listing | None:
    """What the client's cache holds of a repository: of the wanted revision, else of the one last used."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, ValueError):  # not there, or no folder
        return None
    commits = [c for r in repos if (r.repo_id, r.repo_type) == (repository, "model") for c in r.revisions]
    if revision is not None:
        commits = [c for c in commits if revision in c.refs or c.commit_hash.startswith(revision)]
    if not commits:
        return None
    commit = max(commits, key=lambda c: ("main" in c.refs, c.last_modified))
    files = {
        f.file_path.relative_to(commit.snapshot_path).as_posix(): HubFile(f.size_on_disk, None) for f in commit.files
    }
    return Listing(repository, commit.commit_hash, files, cached=True)


def _fetch(
    listing: Listing, file: str, revision: str | None, name: str, confirm: Confirm | None, say: Callable[[str], None]
) -> Path:
    """A file of the repository on this machine."""
    cached = _cached(listing, file)
    if cached is not None:
        say(f"{file} is in the hub's cache")
        return cached
    what = f"{file}{_size(listing.files[file].bytes)} from {_hub()}/{listing.repository}"
    if confirm is not None and not confirm(f"About to download {what}.\n{LICENCE}"):
        raise UsageError("nothing was downloaded: the terms were not accepted", where=listing.repository)
    return _download(listing, file, revision, name)


def _fetch_base(listing: Listing, confirm: Confirm | None, say: Callable[[str], None]) -> Path:
    """The base's configs and weights, of all its files; their folder."""
    files = []
    for folder in FOLDERS:
        own = [f for f in listing.files if PurePosixPath(f).parent.as_posix() == folder]
        shards = [f for f in own if re.search(r"/diffusion_pytorch_model-\d+-of-\d+\.safetensors$", f)]
        index = f"{folder}/{WEIGHTS}.index.json"
        chosen = [f"{folder}/config.json", *([index, *shards] if index in own else [f"{folder}/{WEIGHTS}"])]
        absent = [f for f in chosen if f not in own]
        if absent:
            raise _no_file(listing, f"the base has no file {absent[0]!r}")
        files += chosen
    missing = [f for f in files if _cached(listing, f) is None]
    size = sum(listing.files[f].bytes or 0 for f in missing)
    if missing and confirm is not None:
        what = f"{len(missing)} files{_size(size)} of {_hub()}/{listing.repository}"
        terms = "The checkpoint is merged onto these weights, which their authors publish under terms of their own."
        if not confirm(f"About to download {what}.\n{terms}"):
            raise UsageError("the base was not downloaded: its terms were not accepted", where=listing.repository)
    say(f"fetching the base {listing.repository}")
    paths = [_cached(listing, f) or _download(listing, f, None, listing.repository) for f in files]
    return paths[0].parent.parent


def _cached(listing: Listing, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(listing.repository, file, revision=listing.revision)
    return Path(found) if isinstance(found, str) else None


def _download(listing: Listing, file: str, revision: str | None, name: str) -> Path:
    from huggingface_hub import HfApi, constants

    cache = Path(constants.HF_HUB_CACHE)
    check_disk(cache, _remaining(listing, file, cache), f"download {file} into the hub's cache (HF_HOME moves it)")
    try:
        return Path(HfApi().hf_hub_download(listing.repository, file, revision=revision))
    except _failures() as error:
        if isinstance(error, OSError) and error.errno in _LOCAL:
            raise StorageError(
                "the hub's cache cannot be written to", got=error, where=cache, hint="Set HF_HOME to another folder"
            ) from error
        raise _unreachable(error, listing.repository, name, file) from error


def _remaining(listing: Listing, file: str, cache: Path) -> int:
    """Bytes of a file that are still to be fetched: the client keeps what it has of an interrupted download."""
    from huggingface_hub.file_download import repo_folder_name

    known = listing.files[file]
    blobs = cache / repo_folder_name(repo_id=listing.repository, repo_type="model") / "blobs"
    parts = [p.stat().st_size for p in blobs.glob(f"{known.sha256}*.incomplete")] if known.sha256 else []
    return max((known.bytes or 0) - max(parts, default=0), 0)


def _discard(path: Path) -> None:
    """Takes a file out of the cache: its content, and the link that the client knows it by."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _hub() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _unreachable(error: BaseException, repository: str, name: str, file: str | None = None) -> HubError:
    """The error that says what to fetch by hand, and what to do with it then."""
    what = file or f"the checkpoint of {name.removeprefix('dit-ic-')}"
    first = str(error).strip().splitlines()
    return HubError(
        "the model hub cannot be reached, and its cache does not hold the file",
        got=f"{type(error).__name__}: {first[0] if first else ''}",
        where=f"{_hub()}/{repository}",
        hint="\n".join(
            [
                "Try again later, or through a mirror (HF_ENDPOINT=https://...) or proxy (HTTPS_PROXY=...).",
                f"Or fetch {what} by hand, from {repository} on the hub, and convert it:",
                f"  tilecodec models convert FILE --alias {name if name in OFFICIAL else 'NAME'}",
                f"(a raw LoRA checkpoint needs --base DIR too: the folders transformer and vae of {BASE_REPO})",
            ]
        ),
    )
