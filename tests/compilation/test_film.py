"""The request that workloads are sized by."""

import numpy as np
import pytest

from input_pipeline.patches import video_patches
from omni_jax.compilation.film import HEIGHT, WIDTH, film, seconds_within
from omni_jax.config import ProcessorConfig
from omni_jax.errors import CapacityError
from omni_jax.presets import preset


def test_a_film_of_a_minute_is_as_much_as_the_model_has_positions_for():
    config = preset("qwen2.5-omni-7b")
    found = film(config)
    assert found.tokens == 60 * 510 + 2 + 1500 + 2 + 40 < config.thinker_config.text_config.max_position_embeddings
    assert found.context == 32768
    audio, vision = found.pack(config, 1)
    assert int(audio.frames.sum()) == 6000
    assert int(vision.valid.sum()) == 60 * 34 * 60


def test_its_frames_are_as_large_as_the_input_pipeline_makes_them():
    frames = np.zeros((4, HEIGHT, WIDTH, 3), np.uint8)
    real = video_patches(frames, ProcessorConfig())
    found = film(preset("tiny"), seconds=2)
    assert found.grid == real.grid
    assert int(found.pack(preset("tiny"), 1)[1].valid.sum()) == len(real.pixels)


@pytest.mark.parametrize("context", [256, 1024, 4096, 32768])
def test_a_smaller_cache_gets_a_shorter_film(context):
    seconds = seconds_within(context)
    assert 2 <= seconds <= 60
    assert seconds == 2 or film(preset("tiny"), seconds=seconds).tokens < context


def test_too_many_films_are_refused():
    with pytest.raises(CapacityError, match="patches"):
        film(preset("tiny")).pack(preset("tiny"), 4)
