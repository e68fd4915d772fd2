"""Lets TFDS download and prepare a data set that is not on disk, and turns every failure into one sentence."""

import contextlib
import logging
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from mtljax.errors import unknown

# The host of TFDS's mirror. Without a network TFDS itself retries for three minutes before it gives up.
_PROBE = "https://storage.googleapis.com"
_PROBE_SECONDS = 10


@contextlib.contextmanager
def quiet_tfds() -> Iterator[ModuleType]:
    """Imports tensorflow_datasets, and within the block keeps its warnings about its own dependencies from the user.

    Yields:
      The module.

    Raises:
      ImportError: If it, or the record reader it needs, is not installed; says what to install.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import array_record  # noqa: F401  # pyright: ignore[reportUnusedImport]
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise ImportError(
                "reading TFDS data needs the packages tensorflow-datasets, array_record, importlib_resources and "
                f"pillow ({error}): pip install them"
            ) from error
        absl = logging.getLogger("absl")  # only now: absl must be the one to make its logger
        level = absl.level
        absl.setLevel(logging.ERROR)
        try:
            yield tfds
        finally:
            absl.setLevel(level)


def prepare(name: str, root: Path, local: Sequence[str], *, download: bool) -> Path:
    """Prepares a registered TFDS set in array_record format.

    Args:
      name: TFDS name.
      root: Data_dir to prepare it in.
      local: Names of the sets that are in it already, for the error message.
      download: Whether to try at all.

    Returns:
      The directory of the prepared set.

    Raises:
      FileNotFoundError: If the set could not be, or was not to be, downloaded.
      ValueError: If TFDS has no set of this name.
    """
    base = name.partition(":")[0].partition("/")[0]
    with quiet_tfds() as tfds:
        registered = tfds.list_builders(with_community_datasets=False)
        if base not in registered:
            nearest = unknown("TFDS data set", name, [*local, *registered])
            raise ValueError(f"{nearest}; if it lies elsewhere than {root}, set MTLJAX_DATA or data_dir=")
        reason = "and was not to be downloaded"
        if download:
            try:
                _check_network()
                builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
                builder.download_and_prepare()
                return Path(builder.data_dir)
            except Exception as error:
                reason = f"and TFDS could not download it ({first_line(error)})"
    siblings = [other for other in local if other.partition("/")[0] == base]
    place = f"{root} (which has {', '.join(siblings)})" if siblings else str(root)
    raise FileNotFoundError(
        f"data set {name!r} is not in {place} {reason}: set MTLJAX_DATA (or data_dir=) to a TFDS data_dir that holds "
        "it in array_record format, or run once with network access"
    )


def first_line(error: BaseException) -> str:
    """An error's type and the first line of its message, shortened."""
    message = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {message}"[:200]


def _check_network() -> None:
    request = urllib.request.Request(_PROBE, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # An answer, of whatever kind, came from the network.
