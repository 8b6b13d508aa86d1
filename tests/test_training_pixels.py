"""The cache of decoded images reads DICOM like the service, takes its views and skips other kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model.images import load_pixels
from model.types import View
from tests.support.dicom import dicom, film, png
from training.data.image_store import LooseImages
from training.data.pixel_cache import build_pixel_cache
from training.data.studies import ImageRef, Source, Study

FILES = {
    "frontal": dicom(film(), stored=12, ViewPosition="AP", WindowCenter=2000, WindowWidth=2500),
    "lateral": dicom(film(), stored=12, photometric="MONOCHROME1", ViewPosition="LL"),
    "ct": dicom(film(), sop_class="1.2.840.10008.5.1.4.1.1.2"),
    "png": png(film()),
}


def test_training_reads_dicom_like_the_service(tmp_path: Path) -> None:
    paths = {key: tmp_path / f"{key}.img" for key in FILES}
    for key, path in paths.items():
        path.write_bytes(FILES[key])
    study = Study("a", "a", "train", "Clear.", tuple(ImageRef(key, None) for key in FILES))
    source = Source("test", (study,), (), LooseImages(paths, tmp_path), ())
    cache = build_pixel_cache(source, [study], 64, tmp_path / "cache")
    assert cache.views == {"frontal": View.FRONTAL, "lateral": View.LATERAL}
    assert cache.skipped == {"ct": "not_a_radiograph"}
    for key in ("frontal", "lateral", "png"):
        np.testing.assert_array_equal(cache.array[cache.rows[key]], load_pixels(FILES[key], 64))
    usable = cache.usable(study)
    assert usable is not None
    assert [ref.view for ref in usable.images] == [View.FRONTAL, View.LATERAL, None]
