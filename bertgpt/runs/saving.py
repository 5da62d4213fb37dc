"""Writing a checkpoint in a thread while training goes on, and again if that fails for a reason that may pass."""

import concurrent.futures
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from bertgpt.distributed import is_main, on_main
from bertgpt.io.files import CannotWrite, CannotWriteNow, remove_tree
from bertgpt.io.retry import FIRST, LONGEST, PATIENCE, with_retries
from bertgpt.runs.arrays import start_saving, write_errors
from bertgpt.types import Params

log = logging.getLogger(__name__)


class Saver:
    """Saves arrays as directories, one at a time, each of which appears when it is complete.

    Training waits only until the arrays are copied. By then they may be overwritten: a save that fails later cannot be
    repeated, but `is_due` asks for another one, of the state that training has reached.
    """

    def __init__(self) -> None:
        self.saved: set[Path] = set()
        """directories that are complete"""
        self.unsound: Path | None = None
        """the last directory that was not saved, because not all its numbers are finite"""
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._saving: concurrent.futures.Future[None] | None = None
        self._failing: tuple[float, int, float] | None = None  # since when, how many saves, when to try again

    def save(self, path: Path, items: dict[str, Params], publish: Callable[[Path], None], wait: bool) -> None:
        """Starts to save arrays; the save before must have been waited for.

        Args:
          path: the directory.
          items: arrays by name.
          publish: process 0 calls it with the directory where the arrays are, complete and finite, to rename it.
          wait: return when this is done, and try again here if it fails for a reason that may pass.

        Raises:
          CannotWrite: saves have failed for a reason that does not pass, or for PATIENCE seconds.
        """
        partial = path.with_name(f".{path.name}.partial")

        def start() -> None:
            sound = all_finite(items)  # computed while the arrays are copied
            with self._saved_or_removed(path, partial):
                copied = start_saving(partial, items)
            self._saving = self._thread.submit(self._finish, path, partial, copied, sound, publish)

        def save() -> None:
            start()
            self._saving.result()

        if wait:
            with_retries(save, str(path), lambda error: isinstance(error, CannotWriteNow))
            self.wait()
        else:
            with self._excused():
                start()

    def is_due(self) -> bool:
        """Whether a save has failed for a reason that may pass, and it is time to try again."""
        if self._saving is not None:
            if not self._saving.done():
                return False
            self.wait()
        return self._failing is not None and time.monotonic() >= self._failing[2]

    def wait(self) -> None:
        """Waits until the save is done, or has failed for a reason that may pass. Errors: as `save`."""
        saving, self._saving = self._saving, None
        if saving is not None:
            with self._excused():
                saving.result()
                self._failing = None

    def close(self) -> None:
        """Waits, and ends the thread. Errors: as `save`."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    @contextlib.contextmanager
    def _excused(self) -> Iterator[None]:
        """A save that fails for a reason that may pass is not an error yet."""
        try:
            yield
        except CannotWriteNow as error:
            now = time.monotonic()
            since, count, _ = self._failing or (now, 0, now)
            if now - since > PATIENCE:
                raise
            self._failing = since, count + 1, now + min(LONGEST, FIRST * 2**count)
            if count == 0:
                log.warning("%s; trying again at one of the next steps, for %.0f s", error, PATIENCE)

    def _finish(
        self,
        path: Path,
        partial: Path,
        copied: Callable[[], None],
        sound: jax.Array,
        publish: Callable[[Path], None],
    ) -> None:
        """What the thread does when the arrays are copied."""

        def complete() -> str | None:
            """Publishes the directory, or returns a reason that may pass, with which the processes fail together."""
            try:
                with write_errors(path):
                    publish(partial)
            except CannotWriteNow as error:
                return str(error)
            return None

        with self._saved_or_removed(path, partial):
            copied()
            if not sound:
                self.unsound = path
                if is_main():
                    remove_tree(partial)
            elif (failed := on_main("publish a checkpoint", complete)) is not None:
                raise CannotWriteNow(failed)
            else:
                self.saved.add(path)

    @contextlib.contextmanager
    def _saved_or_removed(self, path: Path, partial: Path) -> Iterator[None]:
        """Removes what was written if the block fails, and says why it failed."""
        try:
            with write_errors(path):
                yield
        except CannotWrite:
            for _ in range(10 if is_main() else 0):  # orbax raises the first error, while other files are being written
                remove_tree(partial)
                remove_tree(partial.with_name(f"{partial.name}.orbax-checkpoint-tmp"))
                time.sleep(0.05)
            raise


@jax.jit
def all_finite(tree: Params) -> jax.Array:
    """Whether every number of a tree of arrays is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
