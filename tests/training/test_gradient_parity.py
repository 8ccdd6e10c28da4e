"""Losses and gradients of packed batches equal those of PyTorch, which takes the conversations one by one."""

import numpy as np
import pytest

from input_pipeline.training_batch import Example, SpeechExample
from omni_jax.config import OmniConfig
from omni_jax.interop import reference
from omni_jax.interop.reference_speech import load_model
from omni_jax.interop.tables import table
from omni_jax.interop.weight_table import nest
from omni_jax.training.dpo import DpoTask
from omni_jax.training.talker_task import TalkerTask
from omni_jax.training.thinker_task import ThinkerTask
from tests.training.packed_batches import LEARNERS, case, compiled, largest_difference, model_of, pack

TOLERANCE = 1e-4
ROWS = (("", "image", "audio"), ("talking", "film", ""))


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return model_of(tiny_checkpoint[1])


@pytest.fixture(scope="module")
def pytorch_model(tiny_checkpoint):
    return load_model(tiny_checkpoint[0])


@pytest.fixture(scope="module")
def cases(model):
    """Conversations with an answer aloud, by the row that they are packed into."""
    return [
        [case(model[0], kinds, seed=10 * row + place, codes=(5 + place,)) for place, kinds in enumerate(each)]
        for row, each in enumerate(ROWS)
    ]


def one_by_one(cases):
    return [each for row in cases for each in row]


def gradients_of(pytorch_model, config) -> dict[str, dict]:
    """What PyTorch accumulated, under our names and in our layout."""
    torch, _ = reference.pytorch()
    named = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in pytorch_model.named_parameters()}
    pytorch_model.zero_grad(set_to_none=True)
    out = {}
    for entry in table(config):
        if entry.component in LEARNERS:
            layers = [entry.transform.to_jax(named[name].numpy()) for name in entry.torch_names]
            out[entry.path] = layers[0] if entry.layers is None else np.stack(layers)
    return nest(out.items())


def think(pytorch_model, each, config):
    """Embeddings, hidden states and logits [T, …] of one conversation, with the graph behind them."""
    thinker, seen = pytorch_model.thinker, {}
    thinker.rope_deltas = None  # kept on the module between calls

    def keep(module, args, kwargs, out):
        seen["embeddings"], seen["hidden"] = kwargs["inputs_embeds"][0], out.last_hidden_state[0]

    hook = thinker.model.register_forward_hook(keep, with_kwargs=True)
    try:
        logits = thinker(**reference.thinker_inputs([each.request], config, pad_id=0), use_cache=False).logits
    finally:
        hook.remove()
    return seen["embeddings"], seen["hidden"], logits[0]


def talk(pytorch_model, each, answer, config):
    """Logits [U, codes] of the Talker for one spoken answer, and the answer's fields."""
    torch, _ = reference.pytorch()
    talker = pytorch_model.talker
    embeddings, hidden, _ = think(pytorch_model, each, config)
    fields = speech_of(each.example, answer, config)
    medium = torch.tensor((each.request.audio_row >= 0) | (each.request.vision_row >= 0))[:, None]
    heard = hidden + torch.where(medium, 0.0, embeddings)
    words, codes = pytorch_model.thinker.get_input_embeddings().weight, talker.get_input_embeddings().weight
    places = []
    for source, token, code in zip(fields["text_source"], fields["text_token"], fields["codes"]):
        text = heard[source] if source >= 0 else words[token]
        places.append(text + codes[code] if code >= 0 else text)
    out = talker.model(
        inputs_embeds=talker.thinker_to_talker_proj(torch.stack(places))[None],
        position_ids=torch.tensor(fields["position_ids"])[:, None],
        use_cache=False,
    )
    return talker.codec_head(out.last_hidden_state)[0], fields


def speech_of(example: Example, answer: SpeechExample, config: OmniConfig) -> dict[str, np.ndarray]:
    """One spoken answer as the fields of a `SpeechTrack`, without batch or segment (architecture.md, 7.3)."""
    talker, (start, stop) = config.talker_config, example.reply
    count = len(answer.codes)
    # after the prompt: the voice, the reply word by word, the end of the text, padding for as long as it is spoken
    following = [*range(start, stop)] + [-1] * (count + 1)
    tokens = [-1] * (stop - start) + [talker.tts_text_end_token_id] + [talker.tts_text_pad_token_id] * count
    size = start + 2 + count
    position = example.position_ids[:, :start].max() + 1 + np.arange(count + 2)
    labels = np.zeros(size, np.int32)
    labels[start + 1 :] = [*answer.codes, talker.tts_codec_end_token_id]
    return {
        "text_source": np.array([*range(start), -1, *following])[:size],
        "text_token": np.array([-1] * start + [answer.voice_token, *tokens])[:size],
        "codes": np.array(
            [-1] * start + [talker.tts_codec_pad_token_id, talker.tts_codec_start_token_id, *answer.codes]
        ),
        "labels": labels,
        "weights": (np.arange(size) > start).astype(np.float32),
        "position_ids": np.concatenate([example.position_ids[:, :start], np.tile(position, (3, 1))], axis=1),
        "task_ids": np.full(size, example.task),
    }


def summed_loss(logits, labels, weights):
    torch, _ = reference.pytorch()
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long(), reduction="none")
    return (losses * torch.tensor(weights)).sum()


def test_the_thinkers_gradients_are_those_of_pytorch(model, pytorch_model, cases):
    config, params = model
    losses, gradients = compiled(ThinkerTask(config, chunk=64))(params, pack(cases, config))
    total, weight = 0.0, 0.0
    for each in one_by_one(cases):
        *_, logits = think(pytorch_model, each, config)
        weights = each.example.weights[1:]
        loss = summed_loss(logits[:-1], each.example.token_ids[1:], weights)
        loss.backward()
        total, weight = total + loss.item(), weight + weights.sum()
    assert losses.total.mean == pytest.approx(total / weight, rel=1e-5)
    theirs = gradients_of(pytorch_model, config)
    assert largest_difference(gradients, {part: theirs[part] for part in gradients}) < TOLERANCE
    for encoder in (theirs["audio_encoder"]["conv1"], theirs["vision_encoder"]["patch_embed"]):
        assert np.abs(encoder["kernel"]).max() > 0


def test_the_talkers_gradients_are_those_of_pytorch_down_to_the_encoders(model, pytorch_model, cases):
    config, params = model
    losses, gradients = compiled(TalkerTask(config, detach=False, chunk=64))(params, pack(cases, config))
    total, weight = 0.0, 0.0
    for each in one_by_one(cases):
        logits, fields = talk(pytorch_model, each, each.example.speech[0], config)
        loss = summed_loss(logits, fields["labels"], fields["weights"])
        loss.backward()
        total, weight = total + loss.item(), weight + fields["weights"].sum()
    assert losses.total.mean == pytest.approx(total / weight, rel=1e-5)
    theirs = gradients_of(pytorch_model, config)
    assert largest_difference(gradients, theirs) < TOLERANCE
    assert np.abs(theirs["audio_encoder"]["conv1"]["kernel"]).max() > 0


def test_the_gradients_of_preferences_are_those_of_pytorch(model, pytorch_model):
    torch, _ = reference.pytorch()
    config, params = model
    beta, given = 0.3, ((-31.0, -40.5), (-52.0, -44.0))
    cases = [
        [case(config, "image", seed=1, codes=(5, 7), reference=given[0])],
        [case(config, seed=2, codes=(6, 4), reference=given[1]), case(config, "audio", seed=3)],
    ]
    task = DpoTask(config, beta=beta, chunk=64)
    losses, gradients = compiled(task)(params, pack(cases, config))
    total = 0.0
    for each in (row[0] for row in cases):
        chosen, rejected = (
            -summed_loss(logits, fields["labels"], fields["weights"])
            for logits, fields in (talk(pytorch_model, each, answer, config) for answer in each.example.speech)
        )
        margin = (chosen - each.example.reference[0]) - (rejected - each.example.reference[1])
        loss = -torch.nn.functional.logsigmoid(beta * margin)
        loss.backward()
        total += loss.item()
    assert losses.total.loss == pytest.approx(total, rel=1e-5)
    assert losses.total.weight == 2
    assert largest_difference(gradients["talker"], gradients_of(pytorch_model, config)["talker"]) < TOLERANCE
