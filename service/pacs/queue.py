"""The durable queue of the node: one SQLite file with the state of every study.

::

    received ──► drafted ──► sent          a new instance of a drafted or sent study is drafted after ``sent``
        └───────────┴──────► failed        a new instance of a failed study makes it received

A state is committed and synchronised before the node answers or acts on it. It stores UIDs and states; patient names
only where they are asked for. The service reads the file for its worklist.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATES = ("received", "drafted", "sent", "failed")
LOST, GONE = "lost_in_memory", "earlier_images_gone"  # codes of studies whose images are not there
_VERSION = 1
_SCHEMA = """
CREATE TABLE studies (
    uid TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    code TEXT,                        -- why the study waits or has failed
    reason TEXT,
    received REAL NOT NULL,           -- time of the first instance
    changed REAL NOT NULL,            -- time of the state
    version INTEGER NOT NULL,         -- number of arrivals
    quiet_at REAL,                    -- when the study is complete; NULL: nothing new
    attempts INTEGER NOT NULL DEFAULT 0,
    next_try REAL NOT NULL DEFAULT 0,
    report TEXT,                      -- token of the unsent structured report
    identity TEXT,                    -- JSON: SOP and series instance UID of the last draft
    sent TEXT,                        -- JSON: the same of the last draft that was sent
    images TEXT,                      -- JSON: instances of the last draft
    patient TEXT,
    accession TEXT
) STRICT;
CREATE TABLE instances (
    study TEXT NOT NULL REFERENCES studies ON DELETE CASCADE,
    uid TEXT NOT NULL,
    series TEXT NOT NULL,
    token TEXT,                       -- of its bytes; NULL: removed
    drafted INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (study, uid)
) STRICT;
CREATE INDEX studies_of_state ON studies (state, next_try);
"""


@dataclass(frozen=True)
class Study:
    """A study of the queue.

    Attributes:
        changed: time at which it reached its state.
        version: changes with every instance that arrives.
        report: token of the unsent structured report.
        identity: SOP and series instance UID of the last draft, sent or not.
        sent: SOP and series instance UID of the last structured report that was sent, for its successor.
        images: SOP instance UIDs of the last draft's images.
    """

    uid: str
    state: str
    changed: float
    version: int
    attempts: int
    report: str | None
    identity: tuple[str, str] | None
    sent: tuple[str, str] | None
    images: tuple[str, ...]

    @property
    def is_sent(self) -> bool:
        """Whether the last draft was sent; one that failed is made again when its study comes again."""
        return self.sent is not None and self.sent == self.identity


@dataclass(frozen=True)
class Instance:
    """An instance of a study: its bytes' token, and whether a draft has taken it into account."""

    uid: str
    series: str
    token: str | None
    drafted: bool


class StudyQueue:
    """Opens or creates the file; safe for threads.

    Raises:
        ValueError: the file has another schema.
        sqlite3.Error: the file is no database or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise ValueError(f"{path} has schema {version}, this version needs {_VERSION}. Move the file away.")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    # --- arrivals -----------------------------------------------------------------------------------------------------

    def received(
        self, study: str, series: str, instance: str, token: str, *, quiet_s: float, patient: str | None = None,
        accession: str | None = None, now: float | None = None,
    ) -> list[str]:  # fmt: skip
        """Record an instance; returns the tokens that it replaces."""
        now = time.time() if now is None else now
        with self._transaction() as db:
            db.execute(
                "INSERT INTO studies (uid, state, received, changed, version) VALUES (?, 'received', ?, ?, 0) "
                "ON CONFLICT DO NOTHING",
                (study, now, now),
            )
            old = db.execute("SELECT token, drafted FROM instances WHERE study = ? AND uid = ?", (study, instance))
            before = old.fetchone()
            db.execute(
                "INSERT INTO instances (study, uid, series, token) VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET series = excluded.series, token = excluded.token",
                (study, instance, series, token),
            )
            db.execute(
                "UPDATE studies SET version = version + 1, quiet_at = ?, patient = ifnull(?, patient), "
                "accession = ifnull(?, accession) WHERE uid = ?",
                (now + quiet_s, patient, accession, study),
            )
            states = ("failed",) if before and before["drafted"] else ("failed", "sent")
            self._change(db, study, "received", now, only=states)
        return [before["token"]] if before and before["token"] else []

    def count_other_instances(self, study: str, instance: str) -> int:
        """How many instances of a study are known, this one not counted."""
        query = "SELECT count(*) FROM instances WHERE study = ? AND uid != ?"
        with self._lock:
            (count,) = self._connection.execute(query, (study, instance)).fetchone()
        return int(count)

    # --- drafting -----------------------------------------------------------------------------------------------------

    def due(self, now: float | None = None) -> Study | None:
        """The study that has been complete for longest, and whose next attempt is due."""
        return self._first(
            "state IN ('received', 'sent') AND quiet_at <= ? AND next_try <= ? ORDER BY quiet_at", now, times=2
        )

    def instances(self, study: str) -> list[Instance]:
        """The instances of a study, in the order of their arrival."""
        with self._lock:
            rows = self._connection.execute("SELECT * FROM instances WHERE study = ? ORDER BY rowid", (study,))
            return [Instance(row["uid"], row["series"], row["token"], bool(row["drafted"])) for row in rows]

    def drafted(self, study: Study, report: str, uid: str, series: str, images: Iterable[str]) -> bool:
        """Record the draft of all instances; False, and nothing is recorded, if another one has arrived since."""
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE studies SET report = ?, identity = ?, images = ?, quiet_at = NULL "
                "WHERE uid = ? AND version = ?",
                (report, json.dumps([uid, series]), json.dumps(list(images)), study.uid, study.version),
            )
            if not changed.rowcount:
                return False
            db.execute("UPDATE instances SET drafted = 1 WHERE study = ?", (study.uid,))
            self._change(db, study.uid, "drafted", time.time())
        return True

    def settle(self, study: Study) -> list[str]:
        """Record that the last draft holds for all instances; returns the tokens to remove."""
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE studies SET quiet_at = NULL WHERE uid = ? AND version = ?", (study.uid, study.version)
            )
            if not changed.rowcount:
                return []
            db.execute("UPDATE instances SET drafted = 1 WHERE study = ?", (study.uid,))
            self._change(db, study.uid, "sent", time.time(), only=("received",))
            return self._emptied(db, study.uid)

    # --- sending ------------------------------------------------------------------------------------------------------

    def to_send(self, now: float | None = None) -> Study | None:
        """The drafted study that has waited for longest, and whose next attempt is due."""
        return self._first("state = 'drafted' AND next_try <= ? ORDER BY changed", now)

    def sent(self, study: Study, keep_s: float = 0.0) -> list[str]:
        """Record that the report was stored; returns the tokens to remove now. ``settle`` removes those it keeps."""
        with self._transaction() as db:
            db.execute("UPDATE studies SET sent = identity, report = NULL WHERE uid = ?", (study.uid,))
            tokens = [study.report] if study.report else []
            new = db.execute("SELECT 1 FROM instances WHERE study = ? AND NOT drafted", (study.uid,)).fetchone()
            self._change(db, study.uid, "received" if new else "sent", time.time())
            if keep_s:
                db.execute(
                    "UPDATE studies SET quiet_at = ? WHERE uid = ? AND quiet_at IS NULL",
                    (time.time() + keep_s, study.uid),
                )
            return tokens if new or keep_s else tokens + self._emptied(db, study.uid)

    def drafted_as(self, sop_uid: str) -> Study | None:
        """The study whose structured report with this SOP instance UID is not sent yet."""
        return self._first("state = 'drafted' AND json_extract(identity, '$[0]') = ?", sop_uid)

    # --- failures -----------------------------------------------------------------------------------------------------

    def postpone(self, study: Study, code: str, reason: str, pause_s: float) -> None:
        """Try a study again after a pause."""
        with self._transaction() as db:
            db.execute(
                "UPDATE studies SET attempts = attempts + 1, next_try = ?, code = ?, reason = ? "
                "WHERE uid = ? AND state = ?",  # the archive may have committed to its report meanwhile
                (time.time() + pause_s, code, reason, study.uid, study.state),
            )

    def failed(self, study: Study, code: str, reason: str, *, judged: bool = False) -> list[str]:
        """Record that a study cannot be drafted or sent; returns the tokens to remove.

        Does nothing if an instance has arrived since, or the archive has committed to the report. With ``judged``, the
        instances were read and are at fault: a later draft needs none of them, because the study may come again
        corrected, with others.
        """
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE studies SET report = NULL WHERE uid = ? AND version = ? AND state = ?",
                (study.uid, study.version, study.state),
            )
            if not changed.rowcount:
                return []
            self._change(db, study.uid, "failed", time.time(), code=code, reason=reason)
            tokens = ([study.report] if study.report else []) + self._emptied(db, study.uid)
            if judged:
                db.execute("DELETE FROM instances WHERE study = ? AND NOT drafted", (study.uid,))
            return tokens

    def reconcile(self, tokens: Iterable[str]) -> list[str]:
        """Compare with the tokens that exist, at the start: studies without their bytes have failed.

        Returns the tokens that belong to no study.
        """
        there, now = set(tokens), time.time()
        reason = "The node ended while the study was in memory only (REPORT_PACS_SPOOL=false). Send the study again."
        with self._transaction() as db:
            for row in db.execute("SELECT uid, report FROM studies WHERE report IS NOT NULL").fetchall():
                if row["report"] not in there:
                    self._change(db, row["uid"], "failed", now, code=LOST, reason=reason)
                    db.execute("UPDATE studies SET report = NULL WHERE uid = ?", (row["uid"],))
            rows = db.execute("SELECT study, token, drafted FROM instances WHERE token IS NOT NULL").fetchall()
            for row in rows:
                if row["token"] not in there:
                    db.execute("UPDATE instances SET token = NULL WHERE token = ?", (row["token"],))
                    if not row["drafted"]:
                        self._change(db, row["study"], "failed", now, code=LOST, reason=reason, only=("received",))
            db.execute(
                "UPDATE instances SET token = NULL WHERE study IN (SELECT uid FROM studies WHERE state = 'failed')"
            )
            held = "SELECT token FROM instances UNION ALL SELECT report FROM studies"
            known = {row[0] for row in db.execute(held)}
        return sorted(there - known)

    def forget(self, before: float) -> None:
        """Delete finished studies that changed before a time."""
        with self._transaction() as db:
            db.execute(
                "DELETE FROM studies WHERE state IN ('sent', 'failed') AND quiet_at IS NULL AND changed < ?", (before,)
            )

    def counts(self) -> dict[str, int]:
        """State -> number of studies."""
        with self._lock:
            return _counts(self._connection)

    def _first(self, condition: str, value: float | str | None, times: int = 1) -> Study | None:
        """The first study of a condition with ``times`` values; they are the current time by default."""
        values = [time.time() if value is None else value] * times
        with self._lock:
            row = self._connection.execute(f"SELECT * FROM studies WHERE {condition} LIMIT 1", values).fetchone()
        if row is None:
            return None
        return Study(
            row["uid"], row["state"], row["changed"], row["version"], row["attempts"], row["report"],
            tuple(json.loads(row["identity"])) if row["identity"] else None,
            tuple(json.loads(row["sent"])) if row["sent"] else None, tuple(json.loads(row["images"] or "[]")),
        )  # fmt: skip

    @staticmethod
    def _change(
        db: sqlite3.Connection, study: str, state: str, now: float, *, code: str | None = None,
        reason: str | None = None, only: tuple[str, ...] = STATES,
    ) -> None:  # fmt: skip
        """Set the state, if it is one of ``only``; attempts begin again."""
        marks = ",".join("?" * len(only))
        db.execute(
            "UPDATE studies SET state = ?, changed = ?, code = ?, reason = ?, attempts = 0, next_try = 0, "
            f"quiet_at = iif(?, NULL, quiet_at) WHERE uid = ? AND state IN ({marks})",
            (state, now, code, reason, state == "failed", study, *only),
        )

    @staticmethod
    def _emptied(db: sqlite3.Connection, study: str) -> list[str]:
        """The tokens of the instances of a study, which are removed from the queue."""
        rows = db.execute("SELECT token FROM instances WHERE study = ? AND token IS NOT NULL", (study,)).fetchall()
        db.execute("UPDATE instances SET token = NULL WHERE study = ?", (study,))
        return [row["token"] for row in rows]


def read_worklist(path: Path, limit: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The last studies, newest first, and the number of all by state, from the file of a node, which may be running.

    Raises:
        OSError: the file is absent.
        sqlite3.Error: the file is no queue.
    """
    if not path.is_file():
        raise FileNotFoundError(str(path))
    options = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"  # no node: no locks
    columns = "uid, state, code, reason, received, changed, attempts, next_try, patient, accession"
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, timeout=2)) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute(f"SELECT {columns} FROM studies ORDER BY changed DESC LIMIT ?", (limit,))
        return [dict(row) for row in rows], _counts(connection)


def _counts(connection: sqlite3.Connection) -> dict[str, int]:
    rows = connection.execute("SELECT state, count(*) FROM studies GROUP BY state").fetchall()
    return dict.fromkeys(STATES, 0) | {row[0]: row[1] for row in rows}
