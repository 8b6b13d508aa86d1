"""What hostile DICOM peers send, byte by byte."""

from __future__ import annotations

import struct
from typing import Any

from pynetdicom.pdu import A_ASSOCIATE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import A_ASSOCIATE, P_DATA, MaximumLengthNotification
from pynetdicom.presentation import build_context

from tests.support.dicom import DX

LAST_COMMAND, COMMAND, LAST_DATA, DATA = 3, 1, 2, 0  # control headers of fragments


def request(calling: str = "MODALITY", called: str = "CXRREPORT") -> bytes:
    """An A-ASSOCIATE-RQ with one presentation context, for DX."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    context = build_context(DX)
    context.context_id = 1
    primitive.presentation_context_definition_list = [context]
    length = MaximumLengthNotification()
    length.maximum_length_received = 16384
    primitive.user_information = [length]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def data_pdu(control: int, value: bytes) -> bytes:
    """A P-DATA-TF with one fragment."""
    primitive = P_DATA()
    fragment: Any = [1, bytes([control]) + value]  # annotated as a tuple, checked as a list
    primitive.presentation_data_value_list = [fragment]
    pdu = P_DATA_TF()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def store_command(uid: str) -> bytes:
    """The command set of a C-STORE request for a DX image."""

    def element(tag: tuple[int, int], value: bytes) -> bytes:
        return struct.pack("<HHI", *tag, len(value)) + value

    def uid_of(text: str) -> bytes:
        return text.encode() + b"\0" * (len(text) % 2)

    numbers = [((0, 0x100), 1), ((0, 0x110), 1), ((0, 0x700), 0), ((0, 0x800), 1)]
    body = element((0, 2), uid_of(DX)) + b"".join(element(tag, struct.pack("<H", each)) for tag, each in numbers)
    body += element((0, 0x1000), uid_of(uid))
    return element((0, 0), struct.pack("<I", len(body))) + body
