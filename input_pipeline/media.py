"""Decoding of real media files into numpy arrays: the public face of `media_audio`, `media_image`, `media_video`.

Sources everywhere: a path (str or Path), a `file://` URL, bytes, a base64 `data:` URL, or numpy arrays. Whatever is
wrong with a file comes out as a `MediaError` that names it.
"""

from input_pipeline.media_audio import AudioSource, has_audio_track, load_audio
from input_pipeline.media_image import ImageSource, load_image
from input_pipeline.media_video import Video, VideoSource, load_video, sample_indices

__all__ = [
    "AudioSource",
    "ImageSource",
    "Video",
    "VideoSource",
    "has_audio_track",
    "load_audio",
    "load_image",
    "load_video",
    "sample_indices",
]
