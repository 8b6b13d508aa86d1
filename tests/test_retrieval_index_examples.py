"""Example studies from a local server in place of Open-i, with invented images."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from retrieval_index import examples
from retrieval_index.examples import LIST, OPEN_I, STUDIES, ExamplesError, image_url, main, read_examples
from tests.support.http import Request, http_server
from tests.support.paths import DRAWN
from tests.support.service import free_port, png, png_claiming

FILES = [file for study in STUDIES for file in study.files.values()]


@dataclass
class OpenI:
    """The images of the server by file name, and the requests that it received."""

    images: dict[str, bytes] = field(default_factory=lambda: {file: png(90 + at) for at, file in enumerate(FILES)})
    cut: set[str] = field(default_factory=set)  # files whose next bodies end early
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def open_i() -> Iterator[OpenI]:
    state = OpenI()

    def respond(request: Request) -> None:
        name, asked = request.path.rpartition("/")[2], request.headers.get("Range")
        state.requests.append((request.path, asked))
        data = state.images.get(name)
        if data is None:
            request.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        request.send_response(206 if asked else 200)
        if asked:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("ETag", '"one"')
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        request.wfile.write(data[start : len(data) // 2] if name in state.cut else data[start:])

    with http_server(respond) as url:
        state.url = url
        yield state


def run(source: str, out: Path) -> int:
    return main(["--images", source, "--out", str(out)])


def listed(out: Path, kind: str = "study") -> list[str]:
    return [example.id for example in read_examples(out) if example.kind == kind]


def test_addresses_are_those_of_open_i() -> None:
    assert image_url(OPEN_I, "CXR3638_IM-1804-1001.png") == f"{OPEN_I}/imgs/512/29/3638/CXR3638_IM-1804-1001.png"
    assert image_url("http://copy/", "CXR24_IM-0949-1001.png") == "http://copy/imgs/512/24/24/CXR24_IM-0949-1001.png"


def test_fetches_unaltered_images_once_and_lists_their_source_and_licence(open_i: OpenI, tmp_path: Path) -> None:
    out = tmp_path / "examples"
    assert run(open_i.url, out) == 0
    assert [(out / file).read_bytes() for file in FILES] == list(open_i.images.values())
    assert [path for path, _ in open_i.requests] == [image_url("", file) for file in FILES]
    first, *others = read_examples(out)
    assert (first.id, first.label, first.licence) == ("CXR24", "normal", "CC BY-NC-ND 4.0")
    assert "Indiana University" in first.attribution
    assert first.source_url == "https://openi.nlm.nih.gov/detailedresult?img=CXR24_IM-0949-1001&req=4"
    assert [other.label for other in others[:3]] == ["cardiomegaly", "pleural effusion", "lung opacity"]
    assert not list(out.glob("*.part*"))
    assert run(open_i.url, out) == 0
    assert len(open_i.requests) == len(FILES)  # nothing is fetched again


def test_interrupted_fetch_is_resumed(open_i: OpenI, tmp_path: Path) -> None:
    open_i.cut = {FILES[0]}
    assert run(open_i.url, tmp_path) == 1
    assert listed(tmp_path) == [study.id for study in STUDIES[1:]]
    open_i.cut.clear()
    open_i.requests.clear()
    assert run(open_i.url, tmp_path) == 0
    half = len(open_i.images[FILES[0]]) // 2
    assert [asked for _, asked in open_i.requests] == [f"bytes={half}-", None]  # the rest, and the other view
    assert (tmp_path / FILES[0]).read_bytes() == open_i.images[FILES[0]]


def test_refuses_what_is_not_an_image_or_too_large(
    open_i: OpenI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {FILES[0]: b"<html>please log in</html>", FILES[2]: png() + bytes(examples.MAX_BYTES)}
    open_i.images = {name: image for name, image in (open_i.images | bad).items() if name != FILES[4]}
    assert run(open_i.url, tmp_path) == 1
    printed = capsys.readouterr()
    reasons = ("is not a PNG image, or a damaged one", "is larger than 4,194,304 bytes", "returned HTTP 404")
    for study, file, reason in zip(STUDIES, FILES[::2], reasons, strict=False):
        assert f"note: {study.id}: {image_url(open_i.url, file)} {reason}" in printed.err
    assert "1 of 4 example studies" in printed.out
    assert listed(tmp_path) == [STUDIES[3].id]
    assert sorted(path.name for path in tmp_path.glob("CXR*")) == sorted(FILES[6:])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a PNG image"),
        (b"GIF89a" + bytes(500), "not a PNG image"),
        (png()[:-20], "or a damaged one"),
        (png().replace(b"IDAT", b"IDAX"), "or a damaged one"),
        (png_claiming(50_000, 50_000), "or a damaged one"),
        (png_claiming(5_000, 100), "an image of 5000 x 100 pixels; 64 to 4096 are allowed"),
        (png(40, 100), "an image of 40 x 100 pixels"),
        (png() + bytes(examples.MAX_BYTES), "a file of more than 4,194,304 bytes"),
    ],
)
def test_only_whole_images_of_bounded_size_are_kept(tmp_path: Path, data: bytes, reason: str) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        examples.check_png(file)
    file.write_bytes(png())
    examples.check_png(file)


def test_offline_run_is_a_note_and_offers_drawings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"http://127.0.0.1:{free_port()}", tmp_path) == 1
    printed = capsys.readouterr().err
    assert printed.count("note:") == 1
    assert "cannot be reached" in printed
    assert listed(tmp_path) == []
    assert listed(tmp_path, "drawing") == ["drawing-normal", "drawing-effusion", "drawing-consolidation"]
    assert (tmp_path / "normal-frontal.png").read_bytes() == (DRAWN / "normal-frontal.png").read_bytes()


def test_silent_server_delays_a_start_by_the_limit_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "REACH_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        _, (note,) = examples.fetch_examples(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
        assert time.monotonic() - began < 3.0
    assert "cannot be reached" in note


def test_local_images_are_copied_and_checked(open_i: OpenI, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for file in FILES[1:]:
        (tmp_path / "images" / file).write_bytes(open_i.images[file])
    (tmp_path / "images" / FILES[4]).write_bytes(b"no image")
    assert run(str(tmp_path / "images"), tmp_path / "out") == 1
    assert listed(tmp_path / "out") == [STUDIES[1].id, STUDIES[3].id]


def write_list(folder: Path, **changes: object) -> None:
    (folder / LIST).write_text(json.dumps({"examples": [{**asdict(STUDIES[0]), **changes}]}))


def test_example_without_its_file_is_not_offered(tmp_path: Path) -> None:
    write_list(tmp_path)
    (tmp_path / FILES[0]).write_bytes(png())
    assert read_examples(tmp_path) == ()
    (tmp_path / FILES[1]).write_bytes(png())
    assert read_examples(tmp_path) == STUDIES[:1]
    assert read_examples(tmp_path / "nothing") == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("files", {"frontal": "../secret.png"}),
        ("files", {"frontal": "/etc/x.png"}),
        ("files", {"frontal": "notes.txt"}),
        ("files", {"oblique": "a.png"}),
        ("files", {}),
        ("id", "../x"),
        ("kind", "photo"),
        ("source_url", "javascript:alert(1)"),
        ("licence", ""),
        ("label", None),
        ("surprise", 1),
    ],
)
def test_refuses_a_list_that_names_other_files(tmp_path: Path, name: str, value: object) -> None:
    write_list(tmp_path, **{name: value})
    with pytest.raises(ExamplesError, match=r"examples.json is not valid .*remove it and run"):
        read_examples(tmp_path)


def test_studies_are_validation_studies_with_these_labels_only(real_data: Path) -> None:
    rows = [line.split(",") for line in (real_data / "openi" / "chexbert_labels.csv").read_text().splitlines()]
    labels = {
        row[0]: {name for name, cell in zip(rows[0][1:], row[1:], strict=True) if cell == "1"} for row in rows[1:]
    }
    splits = dict(line.split(",") for line in (real_data / "openi" / "r2gen_split.csv").read_text().splitlines())
    views = dict(line.split(",") for line in (real_data / "openi" / "views.csv").read_text().splitlines())
    names = {"normal": "No Finding", "lung opacity": "Lung Opacity"}
    for study in STUDIES:
        assert splits[study.id] == "val"
        assert labels[study.id] == {names.get(study.label, study.label.title())}
        assert {views[file.removesuffix(".png")]: file for file in study.files.values()} == study.files
