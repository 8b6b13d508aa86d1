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
from model.images import ImageError, ImageLimits, thumbnail
from model.network.dual_encoder import embed_reports
from model.text.labeler import label_report
from retrieval_index.cases import Case
from retrieval_index.index import ReportIndex
from retrieval_index.user_cases import UserCaseStore
from service.web.problems import Problem

PICTURE_SIDE = 320  # pixels, longer side of a stored picture
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewCase:
    """A case to add; ``images`` maps view -> file content and is stored as small pictures."""

    case_id: str
    findings: str = field(repr=False)
    source_url: str | None = None
    images: Mapping[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class FoundCase:
    """A served case; ``added`` is false for a case of the bundle."""

    case: Case
    added: bool


class _UserCaseOverlay:
    """The added cases in the index of one bundle. The caller holds the lock of ``ReferenceCaseStore``."""

    def __init__(self, bundle: Bundle, index: ReportIndex) -> None:
        self.index, self._tokenizer = index, bundle.tokenizer
        self._tower = copy.deepcopy(bundle.model.text_tower).cpu().eval()
        self._added: dict[str, Case] = {}

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed texts: (N, E), unit length."""
        return embed_reports(self._tower, self._tokenizer, texts)

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
        """Make exactly these the added cases; returns how many have an id of a case of the bundle and were skipped."""
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

    def __init__(self, folder: Path | None, limits: ImageLimits) -> None:
        """Create a closed store.

        Args:
            folder: directory of the added cases; None disables adding.
            limits: bounds on the size of an image.
        """
        self._folder, self._limits = folder, limits
        self._lock = threading.Lock()
        self._store: UserCaseStore | None = None
        self._index: ReportIndex | None = None
        self._overlay: _UserCaseOverlay | None = None
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

        A case that is added or removed meanwhile changes both the previous index and this one.
        """
        store = self._store  # another thread may close it
        overlay = None
        if store is not None and index is not None:
            overlay = _UserCaseOverlay(bundle, index)
            overlay.sync(store.cases())  # slow, so not under the lock
        with self._lock:
            if store is not None and overlay is not None and (hidden := overlay.sync(store.cases())):
                log.warning("%d added cases are not served: cases of this bundle have the same ids", hidden)
            elif store is not None and overlay is None and len(store):
                log.warning("this bundle has no retrieval; %d added cases are not served", len(store))
            self._index, self._overlay, self._serving = index, overlay, True

    def find(self, case_id: str) -> FoundCase:
        """Return the case of an id.

        Raises:
            Problem: ``no_such_case``; ``cases_off`` if replicas hold the cases.
        """
        if not self._serving:
            raise Problem("cases_off", "Replicas hold the cases; this address cannot read them.")
        case = self._index.find(case_id) if self._index is not None else None
        if case is None:
            raise Problem("no_such_case", "No reference case of this id is served. Take ids from the answers.")
        return FoundCase(case, self._overlay is not None and self._overlay.contains(case_id))

    def picture(self, case_id: str, view: str) -> bytes:
        """Return the small picture of a case, a JPEG file.

        Raises:
            Problem: as ``find``; ``no_such_case`` also if there is no such picture.
        """
        picture = self._store.picture(case_id, view) if self.find(case_id).added and self._store is not None else None
        if picture is None:
            raise Problem("no_such_case", "This case has no such picture. Its member images lists those it has.")
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
            Problem: ``cases_off``, ``no_retrieval``, ``case_exists``, ``no_known_word``, ``cases_disk``, or the code of
                an image error.
        """
        pictures = {view: self._picture(data, view) for view, data in new.images.items()}
        with self._lock:
            store, overlay = self._writable(), self._overlay
            if overlay is None:
                raise Problem("no_retrieval", "The bundle that is served has no index. Serve one made with retrieval.")
            if new.case_id in store or overlay.index.find(new.case_id) is not None:
                raise Problem(
                    "case_exists",
                    "A case of this id is here already. Choose another, or DELETE it first.",
                    field="case_id",
                )
            if not overlay.has_known_word(new.findings):
                raise Problem(
                    "no_known_word",
                    "The model knows no word of the findings. Send the findings of a report, in the model's language.",
                    field="findings",
                )
            case = Case(new.case_id, new.findings, dict(label_report(new.findings, use_cache=False)), new.source_url)
            vectors = overlay.embed([new.findings])
            try:
                case = store.add(case, pictures)
            except OSError as error:
                raise _disk(error, "The case was not added") from error
            overlay.insert([case], vectors)
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
                raise Problem(
                    "case_of_bundle", "This case belongs to the bundle. Only cases that were added can be removed."
                )
            try:
                store.remove(case_id)
            except OSError as error:
                if case_id in store:
                    raise _disk(error, "The case was not removed") from error
                log.error("a case was removed, but its pictures may still be on the disk: %s", error.strerror)
            if self._overlay is not None and self._overlay.contains(case_id):
                self._overlay.remove([case_id])
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

    def _picture(self, data: bytes, view: str) -> bytes:
        try:
            return thumbnail(data, PICTURE_SIDE, limits=self._limits)
        except ImageError as error:
            raise Problem(error.code, str(error), field=view) from error


def _disk(error: OSError, outcome: str) -> Problem:
    log.error("the added cases cannot be written: %s", error.strerror)
    return Problem(
        "cases_disk", f"{outcome}: {error.strerror} in REPORT_USER_CASES_DIR. Free disk space, or check the disk."
    )
