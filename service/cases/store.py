"""The reference cases of the service: those of the bundle, and those that users add and remove.

``retrieval_index.user_cases`` stores added cases on disk. Their texts are embedded by the bundle's text tower and
inserted into its index; a bundle swap embeds them again. This uses a copy of the tower on the CPU, because the model
itself belongs to its worker thread. The phrase table of MBR decoding is not extended.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.bundle import Bundle
from model.network.dual_encoder import embed_reports
from model.text.annotations import forget_sentences
from model.text.labeler import label_report
from retrieval_index.cases import Case
from retrieval_index.index import ReportIndex
from retrieval_index.nearest import NORM_TOLERANCE
from retrieval_index.user_cases import UserCaseStore
from service.web.problems import Problem

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewCase:
    """A case to add; ``pictures`` maps view -> small JPEG."""

    case_id: str
    findings: str = field(repr=False)
    source_url: str | None = None
    pictures: Mapping[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class FoundCase:
    """A served case; ``added`` is false for a case of the bundle."""

    case: Case
    added: bool


class _AddedCases:
    """The added cases in the index of one bundle. The caller holds the lock of ``ReferenceCaseStore``."""

    def __init__(self, bundle: Bundle, index: ReportIndex) -> None:
        self.index, self._tokenizer = index, bundle.tokenizer
        self._tower = copy.deepcopy(bundle.model.text_tower).cpu().eval()
        self._added: dict[str, Case] = {}

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed texts: (N, E), unit length.

        Raises:
            ValueError: the index would refuse the vectors.
        """
        vectors = embed_reports(self._tower, self._tokenizer, texts)
        if not np.allclose(np.linalg.norm(vectors, axis=1), 1, rtol=0, atol=NORM_TOLERANCE):  # NaN is not close
            raise ValueError("the text tower gives vectors that are not of unit length; restore the bundle")
        return vectors

    def has_known_word(self, text: str) -> bool:
        return self._tokenizer.has_known_word(text)

    def insert(self, cases: Sequence[Case], vectors: npt.NDArray[np.float32]) -> None:
        self.index.add(vectors, cases)
        self._added.update({case.case_id: case for case in cases})

    def remove(self, case_ids: Sequence[str]) -> None:
        self.index.remove(case_ids)
        for case_id in case_ids:
            del self._added[case_id]

    def contains(self, case_id: str) -> bool:
        return case_id in self._added

    def sync(self, cases: Sequence[Case]) -> int:
        """Replace the added cases; returns the number of skipped cases, whose id is also in the bundle."""
        wanted = {case.case_id: case for case in cases}
        if stale := [case_id for case_id, case in self._added.items() if wanted.get(case_id) is not case]:
            self.remove(stale)
        missing = [case for case in cases if case.case_id not in self._added]
        new = [case for case in missing if self.index.find(case.case_id) is None]
        if new:
            self.insert(new, self.embed([case.findings or "" for case in new]))
        return len(missing) - len(new)


class ReferenceCaseStore:
    """Finds, adds and removes cases, across swaps of the bundle. Thread-safe."""

    def __init__(self, folder: Path | None) -> None:
        """Create a closed store; ``folder`` None disables adding."""
        self._folder = folder
        self._lock = threading.Lock()
        self._store: UserCaseStore | None = None
        self._index: ReportIndex | None = None
        self._added: _AddedCases | None = None
        self._serving = False

    def open(self) -> None:
        """Open the directory of added cases, if one is configured and not open yet.

        Raises:
            UserCaseStoreError: the directory cannot be used.
        """
        if self._folder is not None and self._store is None:
            self._store = UserCaseStore(self._folder)

    def serve(self, bundle: Bundle, index: ReportIndex | None) -> None:
        """Switch to the cases of a bundle: embed all added cases and insert them into its index.

        Cases that are added or removed meanwhile change both the previous index and this one.
        """
        store = self._store  # another thread may close it
        added = None
        if store is not None and index is not None:
            added = _AddedCases(bundle, index)
            added.sync(store.cases())  # slow, so not under the lock
        with self._lock:
            if store is not None and added is not None and (hidden := added.sync(store.cases())):
                log.warning("%d added cases are not served: cases of this bundle have the same ids", hidden)
            elif store is not None and added is None and len(store):
                log.warning("this bundle has no retrieval; %d added cases are not served", len(store))
            self._index, self._added, self._serving = index, added, True

    def find(self, case_id: str) -> FoundCase:
        """Return the case of an id.

        Raises:
            Problem: ``no_such_case``; ``cases_off`` if replicas hold the cases.
        """
        if not self._serving:
            raise Problem("cases_off", "Replicas hold the cases; this endpoint cannot read them.")
        case = self._index.find(case_id) if self._index is not None else None
        if case is None:
            raise Problem(
                "no_such_case", "There is no reference case with this id. Use an id from reference_cases of a response."
            )
        return FoundCase(case, self._added is not None and self._added.contains(case_id))

    def picture(self, case_id: str, view: str) -> bytes:
        """Return the small picture of a case, a JPEG file.

        Raises:
            Problem: as ``find``; ``no_such_case`` also if there is no such picture.
        """
        source = self._store if self.find(case_id).added else self._index
        picture = None if source is None else source.picture(case_id, view)
        if picture is None:
            raise Problem("no_such_case", "This case has no such picture. Its field images lists the existing ones.")
        return picture

    def check_writable(self) -> None:
        """Check that cases can be added.

        Raises:
            Problem: ``cases_off``.
        """
        self._writable()

    def add(self, new: NewCase) -> FoundCase:
        """Store a case and insert it into the index: both or neither.

        Raises:
            Problem: ``cases_off``, ``no_retrieval``, ``case_exists``, ``no_known_word`` or ``cases_disk``.
        """
        with self._lock:
            store, added = self._writable(), self._added
            if added is None:
                raise Problem("no_retrieval", "The served bundle has no index. Serve a bundle with retrieval.")
            if new.case_id in store or added.index.find(new.case_id) is not None:
                raise Problem(
                    "case_exists",
                    "A case with this id exists already. Choose another id, or DELETE the case first.",
                    field="case_id",
                )
            if not added.has_known_word(new.findings):
                raise Problem(
                    "no_known_word",
                    "No word of the findings is in the vocabulary. Send a report in the model's language.",
                    field="findings",
                )
            case = Case(new.case_id, new.findings, dict(label_report(new.findings, use_cache=False)), new.source_url)
            vectors = added.embed([new.findings])
            try:
                case = store.add(case, new.pictures)
            except OSError as error:
                raise _disk(error, "The case was not added") from error
            added.insert([case], vectors)
        log.info("a case was added; %d are stored", len(store))
        return FoundCase(case, added=True)

    def remove(self, case_id: str) -> None:
        """Delete an added case from the index and, with its pictures, from the disk.

        Raises:
            Problem: ``cases_off``, ``no_such_case``, ``case_of_bundle``, ``cases_disk``.
        """
        with self._lock:
            store = self._writable()
            if case_id not in store:
                self.find(case_id)
                raise Problem("case_of_bundle", "This case belongs to the bundle. Only added cases can be removed.")
            try:
                store.remove(case_id)
            except OSError as error:
                if case_id in store:
                    raise _disk(error, "The case was not removed") from error
                log.error("a case was removed, but its pictures may still be on the disk: %s", error.strerror)
            if self._added is not None and self._added.contains(case_id):
                self._added.remove([case_id])
            forget_sentences()
        log.info("an added case was removed; %d are stored", len(store))

    def close(self) -> None:
        """Close the directory of added cases."""
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None

    def _writable(self) -> UserCaseStore:
        if self._store is None:
            raise Problem(
                "cases_off",
                "No cases can be added to this service. Set REPORT_USER_CASES_DIR to a directory for them and restart.",
            )
        return self._store


def _disk(error: OSError, outcome: str) -> Problem:
    log.error("the added cases cannot be written: %s", error.strerror)
    return Problem(
        "cases_disk",
        f"{outcome}: {error.strerror} in REPORT_USER_CASES_DIR. "
        "Free disk space, check the disk, or restart the service.",
    )
