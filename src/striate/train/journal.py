"""The storage of a study: one log file that any number of processes and machines append to.

Optuna's journal rather than its SQL storage on SQLite: SQLite's locks do not hold on many network file
systems (sqlite.org/faq.html, question 5), and a server database is one more thing to run. The journal is only
appended to, and written by whoever has the `Turn`; every process reads it from where it was. What a kill
leaves of a line is cut off by the next writer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.core.locks import Turn, cut_half_line
from striate.train.samplers import optuna

if TYPE_CHECKING:
    from optuna.study import Study

NAME = "study"
JOURNAL = "journal.jsonl"


class WritersTurn:
    """The lock that Optuna takes before it appends: a turn, with the end of the file mended.

    The file that is held has the name of Optuna's own lock, so that its tools take turns with us.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.turn = Turn(path.with_name("journal.turn"), held=f"{os.fspath(path)}.lock")

    def acquire(self) -> bool:
        """Wait for the turn; see `Turn.acquire`."""
        self.turn.acquire()
        cut_half_line(self.path)
        return True

    def release(self) -> None:
        """Give the turn to the next one."""
        self.turn.release()


def open_study(folder: Path) -> Study:
    """Optuna's study in a folder, made when it is not there yet; higher values are better.

    Raises:
        StriateError: Optuna is missing, or the folder cannot be written.
    """
    package = optuna()
    path = folder / JOURNAL
    lock: Any = WritersTurn(path)
    backend = package.storages.journal.JournalFileBackend(os.fspath(path), lock_obj=lock)
    return package.create_study(  # type: ignore[no-any-return]
        storage=package.storages.JournalStorage(backend), study_name=NAME, direction="maximize",
        load_if_exists=True,
    )  # fmt: skip
