"""Where media come from: a path, bytes, or a base64 data URL, opened for PyAV or PIL.

Only file formats on a fixed list are read. Many of FFmpeg's other formats are play lists, image sequences or text
renderers, which would follow references out of the file or turn any text into a film.
"""

import base64
import binascii
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import av
import av.error
import numpy as np

from omni_jax.errors import MediaError

_FORMATS = (
    "wav,flac,mp3,ogg,mov,mp4,m4a,matroska,webm,aac,ac3,eac3,aiff,amr,asf,au,avi,caf,flv,g722,gif,mpeg,mpegts,w64"
)


@dataclass(frozen=True)
class MediaFile:
    """A file on disk or in memory, with the name that errors give it."""

    name: str
    content: Path | bytes

    def open(self) -> str | io.BytesIO:
        """What PyAV and PIL accept: an absolute path (so never a URL), or a seekable stream."""
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else os.path.abspath(self.content)


def media_file(source: str | Path | bytes) -> MediaFile:
    """Checks that `source` (path, `file://` or base64 `data:` URL, bytes) is there and is not empty.

    Raises:
        MediaError: no such file, not a regular file, unreadable, empty, bad base64, or a kind of source not taken.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _in_memory("media bytes", bytes(source))
    if isinstance(source, str) and source.startswith("data:"):
        return _from_data_url(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise MediaError(f"{source}: media are not downloaded. Fetch the file first and give its path.")
    if isinstance(source, str) and source.startswith("file://"):
        source = unquote(urlparse(source).path)
    if not isinstance(source, (str, Path)):
        raise MediaError(
            f"Media source is a {type(source).__name__}; give a path, bytes, a base64 data URL or a numpy array."
        )
    path = Path(source)
    try:
        if not path.exists():
            raise MediaError(f"{path}: no such file. Check the path.")
        if not path.is_file():
            raise MediaError(f"{path}: not a regular file. Give the path of a media file.")
        if not os.access(path, os.R_OK):
            raise MediaError(f"{path}: no permission to read it.")
        if path.stat().st_size == 0:
            raise MediaError(f"{path}: the file is empty (0 bytes). Export or copy it again.")
    except (OSError, ValueError) as error:  # a name that is too long, or holds a null byte
        raise MediaError(f"{str(path)[:200]!r}: cannot be used as a path ({error}).") from error
    return MediaFile(str(path), path)


def is_missing(source: object) -> bool:
    """Whether `source` names a file that is not there (or elsewhere in the network), rather than one that is bad."""
    if not isinstance(source, (str, Path)) or str(source).startswith("data:"):
        return False
    if str(source).startswith(("http://", "https://")):
        return True
    try:
        return not Path(unquote(urlparse(source).path) if str(source).startswith("file://") else source).exists()
    except (OSError, ValueError):
        return True


def _in_memory(kind: str, content: bytes) -> MediaFile:
    if not content:
        raise MediaError(f"{kind}: empty (0 bytes). Give the whole content of a media file.")
    return MediaFile(f"{kind} ({len(content)} B)", content)


def _from_data_url(url: str) -> MediaFile:
    """data:audio/wav;base64,UklGR...  ->  the bytes"""
    head, comma, body = url.partition(",")
    name = f"data URL {head[:60]!r}"
    if not comma or not head.lower().endswith(";base64"):
        raise MediaError(f"{name}: not base64. Write it as 'data:<type>;base64,<content>'.")
    try:
        content = base64.b64decode("".join(unquote(body).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"{name}: the base64 content is damaged ({error}). Encode the file again.") from error
    return _in_memory(name, content)


@contextmanager
def open_container(file: MediaFile) -> Iterator[av.container.InputContainer]:
    """Opens `file` with PyAV; library errors inside the block become `MediaError`s that name the file."""
    try:
        with av.open(file.open(), options={"format_whitelist": _FORMATS}) as container:
            yield container
    except MediaError:
        raise
    except (av.error.FFmpegError, OSError, ValueError, IndexError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(
            f"{file.name}: cannot be read as sound or film ({reason}). The file is damaged, cut short, or not a media "
            "file; convert it to wav, flac, mp3, ogg, m4a, mp4, webm or mkv."
        ) from error


def audio_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    """The first sound track, or None."""
    return container.streams.audio[0] if container.streams.audio else None


def video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The first real video track, or None: the cover picture of a song is not a film."""
    cover = av.stream.Disposition.attached_pic
    return next((stream for stream in container.streams.video if not stream.disposition & cover), None)


def decode(container: av.container.InputContainer, stream: av.stream.Stream, name: str) -> Iterator[av.frame.Frame]:
    """Frames of one track in order of presentation.

    Damaged packets are skipped, as players do, and a track that breaks off ends there; when more packets fail than
    decode, or nothing decodes at all, the file is refused.
    """
    frames = damaged = good = 0
    reason = ""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                break
            decoded = packet.decode()
            good += packet.size > 0
        except av.error.EOFError:
            break
        except av.error.FFmpegError as error:
            damaged += 1
            reason = error.strerror
            if isinstance(error, OSError) and not isinstance(error, ValueError):
                break  # the file itself cannot be read on, so no packet would ever come
            if damaged > 1000 + good:
                break  # garbage without end
            continue
        frames += len(decoded)
        yield from decoded
    if frames == damaged == 0:
        raise MediaError(
            f"{name}: the {stream.type} track is empty (length 0 s). Give a file with something in it; if this one "
            "should have, it is damaged or cut short."
        )
    if frames == 0 or damaged > good:
        raise MediaError(
            f"{name}: the {stream.type} track does not decode ({damaged} damaged packets, {frames} frames: {reason}). "
            "The file is damaged or cut short; export it again."
        )


def finite_rate(rate: object, what: str) -> float:
    """A positive finite number, or a MediaError that says which rate is wrong."""
    if not isinstance(rate, (int, float, np.integer, np.floating)) or not 0 < rate < np.inf:
        raise MediaError(f"{what} must be a positive number, not {rate!r}.")
    return float(rate)
