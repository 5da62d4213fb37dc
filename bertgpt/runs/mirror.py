"""A run, model or store at gs:// or s3://, and its local copy: in which order its files become visible.

Of a checkpoint, checkpoint.json is uploaded last, after the logs and sums that belong to it, and removed first: without
it, a folder checkpoints/STEP is no checkpoint. The URL holds the truth: whatever opens a run makes the local copy equal
to it first. Arrays of checkpoints are downloaded when they are read, and then verified like any other.
"""

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bertgpt.io.files import remove_tree
from bertgpt.io.lease import Lease, lease
from bertgpt.io.locks import is_locked
from bertgpt.io.paths import local_path, url_of
from bertgpt.io.remote import RemoteDirectory
from bertgpt.types import UserError

log = logging.getLogger(__name__)

TRAINING_LOCK = ".training.lock"
LAST = ("progress.json", "results.json")
"""files that speak of checkpoints"""
EVERY = 30.0  # seconds between uploads of the logs
_ARRAYS = re.compile(r"checkpoints/[^/]+/(?!checkpoint\.json$).+")
_COMMIT = re.compile(r"(checkpoints/[^/]+/)checkpoint\.json")


def _is_array(name: str) -> bool:
    """Whether a file belongs to a checkpoint and is downloaded when it is read."""
    return _ARRAYS.fullmatch(name) is not None


def _step_of(name: str) -> str:
    """checkpoints/STEP/ of a file in it."""
    return "/".join(name.split("/")[:2]) + "/"


class _Mirror:
    """A run that is being trained, and what of it was uploaded."""

    def __init__(self, run: Path, held: Lease):
        self.directory = RemoteDirectory(run)
        self._lease = held

    def pull(self) -> None:
        """Makes the local copy equal to the URL, and removes what a save that was interrupted has left there."""
        with self.directory.locked():
            there = self.directory.pull(_is_array)
            complete = {found[1] for name in there if (found := _COMMIT.fullmatch(name))}
            self.directory.remove(name for name in there if _is_array(name) and _step_of(name) not in complete)

    def publish(self) -> None:
        """Makes all that was written so far visible at the URL.

        Raises:
          Unfinished: another process trains this run now, or (RemoteError, CannotWrite) the store does not take it.
        """
        with self.directory.locked():
            record = self.directory.record()
            changed, gone = self.directory.changed(record)
            if changed or gone:
                self._lease.check()
                try:
                    self._publish(changed, gone, record)
                finally:
                    self.directory.save_record(record)

    def _publish(self, changed: list[str], gone: list[str], record: dict[str, list]) -> None:
        self._remove((name for name in gone if not name.startswith("checkpoints/")), record)
        arrays = [name for name in changed if _is_array(name)]
        commits = [name for name in changed if _COMMIT.fullmatch(name)]
        last = [name for name in changed if name in LAST]
        self.directory.upload(set(changed) - {*arrays, *commits, *last}, record)
        for step in sorted({_step_of(name) for name in arrays}):
            there = self.directory.files(step)
            if f"{step}checkpoint.json" in there:  # of a checkpoint that is replaced
                self._remove([f"{step}checkpoint.json"], record)
            self._remove((name for name in there if not (self.directory.local / name).exists()), record)
        self.directory.upload(arrays, record)
        if commits:
            self._lease.check()
        self.directory.upload(commits, record)
        for commit in (name for name in gone if _COMMIT.fullmatch(name)):
            self._remove([commit], record)
            self._remove(self.directory.files(_step_of(commit)), record)
        self.directory.upload(last, record)

    def publish_logs(self) -> None:
        """Uploads what has changed beside the checkpoints and results. Errors: as `publish`."""
        with self.directory.locked():
            record = self.directory.record()
            changed, _ = self.directory.changed(record)
            self._lease.check()
            try:
                logs = [name for name in changed if name not in LAST and not name.startswith("checkpoints/")]
                self.directory.upload(logs, record)
            finally:
                self.directory.save_record(record)

    def _remove(self, names: Iterable[str], record: dict[str, list]) -> None:
        names = list(names)
        self.directory.remove(names)
        for name in names:
            record.pop(name, None)


@contextlib.contextmanager
def mirrored(run: Path) -> Iterator[Callable[[], None]]:
    """Trains in the local copy of a run at a URL during the block; of a run on a file system nothing happens.

    The logs are uploaded every EVERY seconds, and everything when the block ends.

    Args:
      run: the run directory, or the local copy of it, which is made equal to the URL.

    Yields:
      A function that makes all that was written so far visible at the URL.

    Raises:
      UserError: another process trains the run, or the store cannot be read or written.
    """
    if url_of(run) is None:
        yield lambda: None
        return
    directory = RemoteDirectory(run)
    with lease(directory, TRAINING_LOCK, f"{directory.url}: another process is training this run") as held:
        mirror, ended = _Mirror(run, held), threading.Event()
        mirror.pull()

        def keep() -> None:
            while not ended.wait(EVERY):
                try:
                    mirror.publish_logs()
                except UserError as error:  # the next save fails for the same reason, unless it has passed
                    log.warning("%s", error)

        keeper = threading.Thread(target=keep, name="logs", daemon=True)
        keeper.start()
        try:
            yield mirror.publish
        except BaseException:
            _stop(keeper, ended)
            try:
                mirror.publish()
            except UserError as error:
                log.warning("%s", error)
            raise
        _stop(keeper, ended)
        mirror.publish()


def _stop(thread: threading.Thread, ended: threading.Event) -> None:
    ended.set()
    thread.join()


def open_copy(path: str | Path, later: Callable[[str], bool] = _is_array) -> Path:
    """A directory to read from: `path`, or the local copy of a URL, made equal to it but for files to be read `later`.

    While a process of this machine trains the run, its local copy is read as it is. If there is nothing at the URL, the
    local copy is missing too.

    Raises:
      UserError: the URL is of another kind than gs:// and s3://, or cannot be read.
    """
    local = local_path(path)
    if url_of(local) is None or is_locked(local / TRAINING_LOCK):
        return local
    directory = RemoteDirectory(local)
    if directory.has_files():
        with directory.locked():
            directory.pull(later)
    elif not any(map(is_locked, local.rglob(TRAINING_LOCK))):  # of the runs in a folder, one may be in training
        remove_tree(local)
    return local


def fetch(directory: Path, names: Iterable[str], again: bool = False) -> bool:
    """Downloads files that the local copy of a directory at a URL lacks; of one on a file system nothing happens.

    Args:
      directory: the directory of a run or store.
      names: paths inside it.
      again: download them even if they are there, because they are damaged.

    Returns:
      Whether anything was missing.
    """
    local, names = directory, list(names)
    if url_of(local) is None or not (again or any(not (local / name).exists() for name in names)):
        return False
    directory = RemoteDirectory(local)
    if again:
        with directory.locked():
            there = directory.files()
            for name in names:
                if name in there:
                    (local / name).unlink(missing_ok=True)
    if not directory.fetch(names):
        open_copy(local)  # the run has removed this checkpoint, because it saved another one
    return True


def fetch_checkpoint(path: Path, names: Iterable[str], again: bool = False) -> bool:
    """`fetch` of files of RUN/checkpoints/STEP."""
    return fetch(path.parent.parent, [f"checkpoints/{path.name}/{name}" for name in names], again)


def publish_directory(path: Path, last: str) -> None:
    """Uploads a directory that was written in the local copy of a URL, the file `last` after all others.

    Of a directory on a file system nothing happens.

    Raises:
      RemoteError: the store does not take it.
    """
    if url_of(path) is None:
        return
    directory = RemoteDirectory(path)
    with directory.locked():
        record: dict[str, list] = {}
        names = [name for name, _ in directory.local_files()]
        directory.upload((name for name in names if name != last), record)
        directory.upload((name for name in names if name == last), record)
        directory.save_record(record)


def publish_files(paths: Iterable[Path]) -> None:
    """Uploads files that were written in local copies of URLs. Errors: as `publish_directory`."""
    for path in paths:
        if url_of(path) is not None:
            RemoteDirectory(path.parent).upload([path.name], {})
