"""A voice is added to a copy of a checkpoint: its row, its vector, its reference; all else stays as it is."""

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch

from omni_jax.cli.main import main
from omni_jax.config_json import read_config
from omni_jax.errors import CheckpointError, PromptError
from omni_jax.interop.restore import load_checkpoint_info, restore_leaves
from omni_jax.sampling.new_voice import NewVoice, add_voice, copy_row, free_row
from omni_jax.sampling.voices import load_speakers, read_torch_file, voice_from_recording
from omni_jax.sampling.voices_file import write_voices


@pytest.fixture(scope="module")
def added(tiny_checkpoint, tmp_path_factory):
    """The folder with a voice more, its sound, and the speaker."""
    folder = tmp_path_factory.mktemp("voices") / "more"
    waveform = np.random.default_rng(0).normal(size=32000).astype(np.float32) / 9
    return folder, waveform, add_voice(tiny_checkpoint[1], folder, NewVoice("Anna", "Ethan", waveform))


def test_a_new_voice_begins_as_another_and_sounds_like_its_recording(added, tiny_checkpoint):
    folder, waveform, anna = added
    config = read_config(folder)
    before, after = load_speakers(tiny_checkpoint[1], config), load_speakers(folder, config)
    assert list(after) == ["Ethan", "Chelsie", "Anna"] and after["Anna"].token_id == anna.token_id
    assert anna.token_id not in [each.token_id for each in before.values()]
    for name, speaker in before.items():
        assert speaker.token_id == after[name].token_id
        np.testing.assert_array_equal(speaker.vector, after[name].vector)
        np.testing.assert_array_equal(speaker.ref_mel, after[name].ref_mel)
    np.testing.assert_array_equal(after["Anna"].ref_mel, voice_from_recording(before["Ethan"], waveform).ref_mel)
    np.testing.assert_array_equal(after["Anna"].vector, before["Ethan"].vector)


def test_nothing_but_its_row_changes(added, tiny_checkpoint):
    folder, _, anna = added
    old, new = (
        restore_leaves(info, list(info.shapes)) for info in map(load_checkpoint_info, (tiny_checkpoint[1], folder))
    )
    words = old["thinker/embed/embedding"].copy()
    ethan = load_speakers(folder, read_config(folder))["Ethan"].token_id
    assert not np.array_equal(words[anna.token_id], words[ethan])
    words[anna.token_id] = words[ethan]
    assert old.keys() == new.keys() and new["thinker/embed/embedding"].tobytes() == words.tobytes()
    assert all(old[path].tobytes() == new[path].tobytes() for path in old if path != "thinker/embed/embedding")
    changed = [
        path.name
        for path in tiny_checkpoint[1].iterdir()
        if path.is_file() and path.read_bytes() != (folder / path.name).read_bytes()
    ]
    assert changed == ["spk_dict.pt"]


def test_a_trained_folder_is_changed_in_its_row_only(tmp_path):
    table = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    tree = {"thinker": {"embed": {"embedding": jnp.asarray(table, jnp.bfloat16)}, "scale": jnp.ones(3)}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "params", args=ocp.args.PyTreeSave(tree))
    copy_row(tmp_path / "params", 7, 41)
    expected = np.array(tree["thinker"]["embed"]["embedding"])
    expected[41] = expected[7]
    back = restore_leaves(load_checkpoint_info(tmp_path), ["thinker/embed/embedding"])["thinker/embed/embedding"]
    assert back.tobytes() == expected.tobytes()


def test_pytorch_reads_the_file(tmp_path):
    draw = np.random.default_rng(0)
    voices = {
        name: {"bos_token": 151873 + i, "cond": draw.normal(size=(1, 5)), "ref_mel": draw.normal(size=(1, 7, 3))}
        for i, name in enumerate(("Anna", "Jörg"))
    }
    write_voices(tmp_path / "spk_dict.pt", voices)
    ours, theirs = read_torch_file(tmp_path / "spk_dict.pt"), torch.load(tmp_path / "spk_dict.pt", weights_only=True)
    for read in (ours, theirs):
        assert list(read) == list(voices)
        for name, entry in voices.items():
            assert read[name]["bos_token"] == entry["bos_token"]
            for key in ("cond", "ref_mel"):
                np.testing.assert_array_equal(read[name][key], entry[key].astype(np.float32))


def test_what_cannot_be_added_is_refused(added, tiny_checkpoint, tmp_path):
    folder, waveform, anna = added
    for new, message in (
        (NewVoice("Ethan"), "'Ethan' is there already"),
        (NewVoice("Bo", like="Nobody"), "There is no voice 'Nobody'"),
        (NewVoice("Bo", vector=np.zeros(192)), "give both"),
        (NewVoice("Bo", waveform=waveform, vector=np.zeros(3)), "speaker vector must be"),
    ):
        with pytest.raises(PromptError, match=message):
            add_voice(folder, tmp_path / "no", new)
    config = read_config(folder)
    speakers = load_speakers(folder, config)
    assert free_row(folder, config, speakers) == anna.token_id + 1
    last = config.thinker_config.text_config.vocab_size - 1
    object.__setattr__(speakers["Anna"], "token_id", last)
    with pytest.raises(CheckpointError, match="rows of the embedding are in use"):
        free_row(folder, config, speakers)
    assert not (tmp_path / "no").exists()


def test_the_command_adds_and_lists(tiny_checkpoint, tmp_path, capsys):
    command = ["voices", "--checkpoint", str(tiny_checkpoint[1])]
    assert main([*command, "--add", "Anna", "--to", str(tmp_path / "more"), "--json"]) == 0
    assert '"voices": ["Ethan", "Chelsie", "Anna"], "default": "Chelsie", "row":' in capsys.readouterr().out
    for options, message in ((["--like", "Ethan"], "Name it: --add NAME"), (["--add", "Bo"], "--to DIR")):
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err
