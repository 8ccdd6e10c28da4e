"""`omni-jax demo` from the command to the page, with a tiny random model; and what it says when something is wrong."""

import gc
import json
import shutil
import wave
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from omni_jax.cli import demo, demo_play
from omni_jax.cli.demo_play import Comparison, Played, Player, exact_products
from omni_jax.cli.demo_scenes import FILE
from omni_jax.cli.main import main
from omni_jax.sampling.compiled import compiled_programs

SHORT = ("--max-new-tokens", "4", "--max-codes", "30", "--steps", "2")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A film and a text, the first with a voice that nobody has."""
    folder = tmp_path_factory.mktemp("scenes")
    given = json.loads((demo.SCENES / FILE).read_text())["scenes"]
    chosen = [scene for scene in given if scene["name"] in ("film", "please-say")]
    (folder / FILE).write_text(json.dumps({"scenes": chosen}))
    shutil.copyfile(demo.SCENES / "film.mp4", folder / "film.mp4")
    return folder


@pytest.fixture(scope="module")
def shown(tiny_checkpoint, scenes, tmp_path_factory):
    """Status, the JSON object, what was printed, the folder."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    target, out, err = tmp_path_factory.mktemp("demo") / "new", StringIO(), StringIO()
    options = "--checkpoint", str(tiny_checkpoint[1]), "--scenes", str(scenes), "--folder", str(target), "--json"
    honest = Player.play

    def counted(self, *given):
        before = compiled_programs()
        played = honest(self, *given)
        assert compiled_programs() == before, "programs were compiled while the clock was running"
        return played

    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Player, "play", counted)
        status = main(["--debug", "demo", *options, *SHORT])
    return status, json.loads(out.getvalue()), err.getvalue(), target


def test_every_scene_is_answered_in_text_and_speech(shown):
    status, result, printed, target = shown
    assert status == 0 and result["pass"] is True
    assert [row["name"] for row in result["rows"]] == ["film", "please-say"]
    for number, row in enumerate(result["rows"], start=1):
        assert 1 <= len(row["tokens"]) <= 4 and 1 <= row["codes"] <= 30
        assert row["audio_path"] == str(target / f"{number}-{row['name']}.wav")
        with wave.open(row["audio_path"]) as sound:
            assert (sound.getframerate(), sound.getnframes()) == (24_000, 480 * row["codes"])
        assert 0 < row["first_text"] < row["first_sound"] < row["seconds"]["answer"]
        assert row["real_time_factor"] == pytest.approx(row["seconds"]["answer"] / row["sound_seconds"])
        assert row["truth"] in printed and row["question"] in printed
    film, text = (row["seconds"] for row in result["rows"])
    assert {"read", "encode_audio", "encode_vision", "prefill", "answer"} <= set(film)
    assert "encode_audio" not in text and "encode_vision" not in text


def test_random_weights_are_wrong_and_it_says_so(shown):
    _, result, printed, _ = shown
    assert result["right"] == 0 and printed.count("WRONG") == 2 and "0 of 2 answers right. First sound" in printed


def test_streamed_and_offline_answers_are_the_same(shown):
    _, result, printed, _ = shown
    for row in result["rows"]:
        assert row["offline"] == {"same": True, "tokens": True, "codes": True, "largest_difference": 0.0}
        told = f"the same {len(row['tokens'])} tokens, the same {row['codes']} codes, {480 * row['codes']} samples"
        assert f"{told}, largest difference 0" in printed


def test_the_page_shows_all_of_it(shown):
    _, result, _, target = shown
    assert result["page"] == str(target / "demo.html")
    content = (target / "demo.html").read_text()
    assert content.count("<article") == content.count("data:audio/wav") == 2
    assert "data:video/mp4" in content and "euler with 2 time points" in content


def test_another_offline_answer_is_a_failure(tiny_checkpoint, scenes, tmp_path, monkeypatch, capsys):
    honest = Player.compare

    def with_another_code(self, shown, offline):
        return honest(self, shown, [(tokens, [*codes[:-1], codes[-1] ^ 1]) for tokens, codes in offline])

    monkeypatch.setattr(Player, "compare", with_another_code)
    options = "--checkpoint", str(tiny_checkpoint[1]), "--scenes", str(scenes), "--folder", str(tmp_path), "--json"
    assert main(["demo", *options, *SHORT]) == 1
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["pass"] is False and "other CODES" in captured.err
    assert all(row["offline"]["largest_difference"] > 0 for row in result["rows"])


def test_samples_that_differ_are_seen():
    assert not replace(Comparison(True, True, 0.0), largest=1e-3).same


def test_a_large_model_may_differ_for_it_rounds(tiny_checkpoint, scenes, tmp_path, monkeypatch, capsys):
    class Rounding:
        """Streams other codes than offline."""

        exact, about = False, "3000.0 M parameters, bfloat16"

        def __init__(self, *_):
            pass

        def warm_up(self, scenes, report):
            return [([1], [1])] * len(scenes)

        def play(self, scene, on_text):
            return Played(scene, "heart", token_ids=[1], codes=[2], seconds={"prefill": 0.1, "answer": 1.0})

        def compare(self, shown, offline):
            return [Comparison(True, False, 0.1) for _ in shown]

    monkeypatch.setattr(demo_play, "Player", Rounding)
    options = "--checkpoint", str(tiny_checkpoint[1]), "--scenes", str(scenes), "--folder", str(tmp_path), "--json"
    assert main(["--debug", "demo", *options]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["pass"] is True and not any(row["offline"]["same"] for row in result["rows"])
    assert "other CODES" in captured.err and "bfloat16 rounds differently" in captured.err
    monkeypatch.setattr(Rounding, "exact", True)
    assert main(["demo", *options]) == 1


@pytest.mark.parametrize("most, wanted", [(demo_play.LARGE, jnp.float32), (1000, None)])
def test_a_model_that_is_not_large_computes_in_float32(tiny_checkpoint, monkeypatch, most, wanted):
    asked = []

    def load(folder, *, dtype, chunk):
        asked.append(dtype)
        return SimpleNamespace(dtype=jnp.dtype(dtype or jnp.bfloat16))  # as off a CPU

    monkeypatch.setattr(demo_play, "LARGE", most)
    monkeypatch.setattr(demo_play, "load_sampler", load)
    monkeypatch.setattr(demo_play.Speech, "from_checkpoint", lambda *_: None)
    player = Player(tiny_checkpoint[1], None, None)
    assert asked == [wanted] and player.exact == (wanted is not None)


@pytest.fixture
def usual_products():
    """As outside of tests, which run with exact ones."""
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", None)
    yield
    jax.config.update("jax_default_matmul_precision", before)


@pytest.mark.usefixtures("usual_products")
def test_products_are_exact_in_all_threads_of_a_gpu(monkeypatch):
    def asked() -> bool:
        with ThreadPoolExecutor(1) as other:
            program = other.submit(lambda: jax.jit(lambda x: x @ x).lower(jnp.ones((2, 2))).as_text())
        return "precision = [HIGHEST, HIGHEST]" in program.result()

    with exact_products():
        assert not asked()  # a CPU is exact as it is
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with exact_products():
        assert asked()
    with exact_products(False):
        assert not asked()
    assert not asked()


def error_of(capsys, *options):
    assert main(["demo", *map(str, options)]) == 2
    return capsys.readouterr().err


def test_the_model_of_the_program_is_missing(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "MODEL", tmp_path / "omni_tiny")
    error = error_of(capsys, "--folder", tmp_path / "to", "--scenes", scenes)
    assert "comes with the program is damaged" in error and "does not exist" in error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's further complaints
def test_a_damaged_model_of_the_program_is_named(tiny_checkpoint, scenes, tmp_path, monkeypatch, capsys):
    model = tmp_path / "omni_tiny"
    shutil.copytree(tiny_checkpoint[1], model)
    monkeypatch.setattr(demo, "MODEL", model)
    values = max((file for file in model.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    values.write_bytes(values.read_bytes()[: values.stat().st_size // 2])
    error = error_of(capsys, "--folder", tmp_path / "to", "--scenes", scenes)
    assert "comes with the program is damaged" in error and f"git checkout -- {model}" in error
    gc.collect()
    (model / "params" / "_METADATA").unlink()
    error = error_of(capsys, "--folder", tmp_path / "to", "--scenes", scenes)
    assert "comes with the program is damaged" in error and "params/_METADATA is missing" in error


def test_what_was_given_wrongly_is_named(tiny_checkpoint, tmp_path, capsys):
    assert "does not exist" in error_of(capsys, "--checkpoint", tmp_path / "none")
    good = "--checkpoint", tiny_checkpoint[1]
    assert "scenes.json is missing" in error_of(capsys, *good, "--scenes", tmp_path)
    (tmp_path / "file").touch()
    assert "cannot be written" in error_of(capsys, *good, "--folder", tmp_path / "file")
    assert "num_steps" in error_of(capsys, *good, "--folder", tmp_path / "to", "--steps", 1)
    assert "max_new_tokens" in error_of(capsys, *good, "--folder", tmp_path / "to", "--max-codes", 0)
