"""A process that decodes images: ``python -m service.inference.decode_worker FD MEMORY_BYTES CPU_S``.

Decoders of untrusted files crash, leak, and run for hours. Here they can harm only this process: the
system bounds its memory and the processor time of each image, and it may not write files.

One request is a JSON header and the file; one response is a JSON header and the pixels or the
picture. It is never a pickle, so a decoder that an attacker controls cannot run code in the service.
This module must not import torch or the web framework: a start takes a third of a second.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import resource
import signal
import socket
import struct
import sys
import traceback
import warnings
from collections.abc import Mapping
from typing import Any, BinaryIO

from model.images import ImageError, ImageLimits, read_image, thumbnail
from model.types import View

LENGTHS = struct.Struct(">II")  # bytes of the JSON header and of the data behind it
READ, THUMBNAIL = "read", "thumbnail"
_OPEN_FILES = 64


def decode(header: Mapping[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Carry out one request.

    Args:
        header: ``operation``, ``limits``, and the arguments of ``read_image`` or ``thumbnail``.
        data: the file.

    Returns:
        The header and the data of the response. An error is a header with ``error`` (of the image),
        ``memory``, or ``failure`` (unexpected; its message might quote the file and is left out).
    """
    try:
        limits = ImageLimits(**header["limits"])
        if header["operation"] == THUMBNAIL:
            return {}, thumbnail(data, header["longest"], limits=limits)
        image = read_image(data, header["size"], limits=limits, resample=header["resample"])
        warned = [[warning.code, warning.message] for warning in image.warnings(View(header["view"]))]
        return {"view": image.view, "warnings": warned}, image.pixels.tobytes()
    except ImageError as error:
        return {"error": [error.code, str(error)]}, b""
    except MemoryError:
        return {"memory": True}, b""
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        locations = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
        return {"failure": [type(error).__name__, locations]}, b""


def serve(requests: BinaryIO, responses: BinaryIO, cpu_s: float) -> None:
    """Answer requests until they end. The system ends the process at ``cpu_s`` per request."""
    while len(lengths := requests.read(LENGTHS.size)) == LENGTHS.size:
        header_length, length = LENGTHS.unpack(lengths)
        header = json.loads(requests.read(header_length))
        data = requests.read(length)
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        answer, result = decode(header, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        del data
        encoded = json.dumps(answer).encode()
        responses.write(LENGTHS.pack(len(encoded), len(result)) + encoded + result)
        responses.flush()


def _confine(memory_bytes: int) -> None:
    """Limit memory, files and core dumps, and stop all output: libraries quote what they read."""
    with open("/proc/self/statm") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()  # mapped, mostly libraries
    for limit, value in (
        (resource.RLIMIT_AS, present + memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        hard = resource.getrlimit(limit)[1]  # of the service; only root may raise it
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)


def main() -> None:
    """Serve the socket with descriptor FD."""
    descriptor, memory_bytes, cpu_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs

        for name in ("jpeg8_decode", "jpegls_decode", "jpeg2k_decode", "packbits_decode"):
            getattr(imagecodecs, name)  # loads it
    with socket.socket(fileno=descriptor) as connection:
        _confine(memory_bytes)
        connection.sendall(LENGTHS.pack(0, 0))  # ready
        serve(connection.makefile("rb"), connection.makefile("wb"), cpu_s)


if __name__ == "__main__":
    main()
