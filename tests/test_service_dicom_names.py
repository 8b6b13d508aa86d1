"""Person names in the character sets of real DICOM files: declared, undeclared or wrongly declared."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("highdicom", reason="needs pip install highdicom")

import pydicom

from service.formats import sr
from service.formats.dicom_source import SourceImage, source_image
from tests.support.formats import dicom, example

GERMAN = "Müller^Jürgen"
CHINESE = "张^三"
NAME, SOP_CLASS = b"\x10\x00\x10\x00", b"\x08\x00\x16\x00UI"
IR_58 = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab= "
IR_87 = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"
IR_149 = b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"


def element(group: bytes, vr: bytes, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    return group + vr + len(value).to_bytes(2, "little") + value


def image(character_set: str | None, name: bytes) -> bytes:
    """A file with these bytes in the two elements; pydicom would encode them again."""
    dataset = pydicom.dcmread(io.BytesIO(dicom()))
    del dataset.SpecificCharacterSet, dataset.ReferringPhysicianName
    dataset.PatientName = "NAME"
    file = io.BytesIO()
    dataset.save_as(file)
    data = file.getvalue().replace(element(NAME, b"PN", b"NAME"), element(NAME, b"PN", name))
    declared = b"" if character_set is None else element(b"\x08\x00\x05\x00", b"CS", character_set.encode())
    return data.replace(SOP_CLASS, declared + SOP_CLASS, 1)


@pytest.mark.parametrize(("character_set", "name", "expected"), [
    ("GB18030", CHINESE.encode("gb18030"), CHINESE), ("GBK", CHINESE.encode("gbk"), CHINESE),
    ("ISO_IR 192", GERMAN.encode(), GERMAN), ("ISO_IR 100", GERMAN.encode("latin-1"), GERMAN),
    ("ISO_IR 100", "Größmann^Åsa".encode("latin-1"), "Größmann^Åsa"),
    ("ISO_IR 101", "Čáč^Řehoř".encode("iso8859_2"), "Čáč^Řehoř"), ("ISO_IR 144", "Иван".encode("iso8859_5"), "Иван"),
    ("ISO_IR 166", "เดช^ชื่อ".encode("tis620"), "เดช^ชื่อ"), ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ".encode("shift_jis"), "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    ("\\ISO 2022 IR 87", IR_87, "Yamada^Tarou=山田^太郎"),
    ("ISO 2022 IR 6\\ISO 2022 IR 149", IR_149, "Hong^Gildong=洪^吉洞"),
    ("\\ISO 2022 IR 58", IR_58, "Zhang^XiaoDong=张^小东="),
    ("ISO 2022 IR 6\\ISO 2022 IR 58", IR_58, "Zhang^XiaoDong=张^小东="),
    (None, IR_58, "Zhang^XiaoDong=张^小东="), ("ISO_IR 100", IR_149, "Hong^Gildong=洪^吉洞"),
    ("\\ISO 2022 IR 149", "홍^길동".encode("euc_kr"), "홍^길동"),
    ("ISO-IR 192", GERMAN.encode(), GERMAN), ("UTF-8", CHINESE.encode(), CHINESE),
    (None, GERMAN.encode("latin-1"), GERMAN), ("ISO_IR 999", GERMAN.encode("latin-1"), GERMAN),
    ("ISO_IR 192", GERMAN.encode("latin-1"), GERMAN),
    *((wrong, name.encode(), name) for wrong in (None, "", "ISO_IR 100", "ISO_IR 144")
      for name in (CHINESE, "张三", "Иванов^Пётр")),
    ("GB18030", CHINESE.encode(), CHINESE), ("GBK", "张三".encode(), "张三"),
])  # fmt: skip
def test_reads_names(character_set: str | None, name: bytes, expected: str) -> None:
    found = source_image(image(character_set, name))
    assert (found.patient_name, found.unreadable) == (expected, ())
    assert str(written(found).PatientName).rstrip("=") == expected.rstrip("=")


def test_reads_a_name_that_pydicom_has_already_decoded() -> None:
    dataset = pydicom.dcmread(io.BytesIO(image("\\ISO 2022 IR 58", IR_58)))
    assert "\x1b" in str(dataset.PatientName)
    assert SourceImage.from_dataset(dataset).patient_name == "Zhang^XiaoDong=张^小东"


@pytest.mark.parametrize("character_set", [None, "", "ISO_IR 100", "ISO_IR 192", "ISO_IR 999", "rot13"])
@pytest.mark.parametrize("name", [CHINESE.encode("gbk"), "张智宏".encode("gbk"), "Иванов".encode("cp1251")])
def test_name_that_cannot_be_known_is_left_out_with_a_comment(character_set: str | None, name: bytes) -> None:
    found = source_image(image(character_set, name))
    assert (found.patient_name, found.unreadable) == ("", ("PatientName",))
    report = written(found)
    assert report.PatientName == ""
    assert [item.TextValue for item in report.ContentSequence if "PatientName" in item.get("TextValue", "")]


def written(source: SourceImage) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(sr.structured_report(example(), 1, [source])))
