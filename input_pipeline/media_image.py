"""Pictures: any file or array becomes upright RGB of 8 bits."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from input_pipeline.media_source import MediaFile, media_file
from input_pipeline.patches import check_aspect_ratio
from omni_jax.errors import MediaError

ImageSource = str | Path | bytes | np.ndarray

# A fixed list, because some of PIL's readers start other programs (EPS). JPEG includes the MPO of phones.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def load_image(source: ImageSource) -> np.ndarray:
    """A picture as uint8 [H, W, 3] RGB.

    The EXIF orientation is applied, the first frame of an animation is taken, and transparent parts become white.

    Args:
        source: path, `file://` or base64 `data:` URL, or bytes of a PNG, JPEG, WebP, GIF or BMP file; or a uint8 array
            [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].

    Raises:
        MediaError: missing, empty, damaged, cut short, too many pixels, sides further apart than 200 to 1, or not a
            picture.
    """
    if isinstance(source, np.ndarray):
        image, name = _from_array(source), "image array"
    else:
        file = media_file(source)
        image, name = _from_file(file), file.name
    check_aspect_ratio(*image.shape[:2], name)
    return image


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or array.size == 0 or not (array.ndim == 2 or array.shape[2:] in ((3,), (4,))):
        raise MediaError(
            f"image array: shape {array.shape} of {array.dtype} is not a picture. Give uint8 of shape [H, W, 3]."
        )
    return _rgb(Image.fromarray(array))


def _from_file(file: MediaFile) -> np.ndarray:
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(file.open(), formats=_FORMATS) as image:
            if limit is not None and image.width * image.height > limit:
                raise _too_large(file.name, f"{image.width}x{image.height} pixels")
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(file.name, str(error)) from error
    except Exception as error:  # on damaged files PIL raises nearly anything: OSError, SyntaxError, struct.error, ...
        reason = "unknown format" if "cannot identify" in str(error) else str(error) or type(error).__name__
        raise MediaError(
            f"{file.name}: cannot be read as a picture ({reason}). The file is damaged, cut short, or not a picture; "
            "convert it to PNG, JPEG, WebP or GIF."
        ) from error


def _too_large(name: str, detail: str) -> MediaError:
    return MediaError(
        f"{name}: too large to decode safely ({detail}; limit {Image.MAX_IMAGE_PIXELS}). Scale the picture down first."
    )


def _rgb(image: Image.Image) -> np.ndarray:
    """Any mode of PIL -> uint8 [H, W, 3], transparency on white."""
    if image.mode.startswith("I"):  # 16-bit grey, which PIL's own conversion would clip at 255
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))
