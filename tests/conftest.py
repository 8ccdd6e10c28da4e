"""Settings and fixtures for all tests. Environment variables are set before anything imports JAX."""

import gc
import os
from pathlib import Path

from tests.processes import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# compiled programs outlive the process: shared by parallel workers, and kept for the next run
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("XLA_FLAGS", xla_flags())

import jax
import jaxtyping
import pytest
from filelock import FileLock

# Files that take longest begin first (`make test` keeps the order), so that no worker waits for the other's last file.
# Those that share compiled programs lie apart: the later ones find them in the cache.
LONGEST = (
    "test_survival_train", "test_stages_meshes", "test_sharding", "test_stages_thinker", "test_pipeline",
    "test_stages_sound", "test_cli_speech_data", "test_parity", "test_tpu_compile", "test_whole_and_step",
    "test_cli_prefer", "test_survival", "test_token2wav_task", "test_speech_tokenizer_task", "test_vocoder_task",
    "test_stages_talker", "test_cli_train", "test_speech", "test_live", "test_sound", "test_encoders",
    "test_accelerator_paths", "test_cli_demo", "test_warpers", "test_trainer", "test_dit", "test_trainer_media",
    "test_gpu_compile",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


# Shapes and types of every call are checked while tests run (not in use).
jaxtyping.install_import_hook(["omni_jax.layers", "omni_jax.models"], "beartype.beartype")


@pytest.fixture(scope="module", autouse=True)
def no_programs_of_other_files():
    """Compiled programs go with their file: each maps memory, and a process may have no more than 65,530 mappings."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, worker_id) -> tuple[Path, Path]:
    """A random tiny checkpoint, (published folder, imported folder): made once for all workers. Do not write to it."""
    from omni_jax.interop.import_checkpoint import import_checkpoint
    from omni_jax.interop.random_checkpoint import make_random_checkpoint

    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "tiny_checkpoint"
    published, imported = root / "published", root / "imported"
    with FileLock(f"{root}.lock"):
        if not imported.exists():  # an import appears whole or not at all
            make_random_checkpoint(published, "tiny")
            import_checkpoint(published, imported)
    return published, imported


@pytest.fixture(scope="session")
def speech_pairs(tiny_checkpoint, tmp_path_factory, worker_id) -> Path:
    """What `omni-jax speech-pairs` makes of two texts with the tiny checkpoint: once for all workers. Do not write."""
    from tests.speech_data import PAIRS, TEXTS, make_pairs

    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "speech_pairs"
    with FileLock(f"{root}.lock"):
        if not (root / "pairs" / "clips.jsonl").exists():
            root.mkdir(exist_ok=True)
            (root / "texts.txt").write_text("\n".join(TEXTS) + "\n")
            assert make_pairs(tiny_checkpoint[1], root / "texts.txt", root / "pairs", *PAIRS) == 0
    return root / "pairs"
