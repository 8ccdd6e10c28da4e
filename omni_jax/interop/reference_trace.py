"""What passes through the PyTorch Thinker, tensor by tensor; and a Thinker that holds one layer's weights at a time.

`lazy_thinker` is the reference's own model on the meta device. A layer's weights are read when it is called and
dropped when it returns, so the whole forward pass of a large checkpoint, with its own masks and positions, needs the
memory of its largest layer.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from omni_jax.interop.reference import pytorch, quiet
from omni_jax.interop.safetensors_shards import Tensor

# Name on the walk -> array [rows, channels].
Trace = dict[str, np.ndarray]


def trace(model: Any, inputs: dict[str, Any]) -> Trace:
    """One forward pass over a single prompt, with what every stage gave.

    Keys, for `part` in audio_encoder, vision_encoder (when the prompt has media for it) and thinker:
    `{part}.input`, what the first layer got; `{part}.layers.{i}`; `{part}.output`, after the projection, the merger
    (in window order) or the final norm; and `logits`.
    """
    torch, _ = pytorch()
    with recorded() as tape:
        tape.stack("audio_encoder", model.audio_tower.layers, model.audio_tower.proj)
        tape.stack("vision_encoder", model.visual.blocks, model.visual.merger)
        tape.stack("thinker", model.model.layers, model.model.norm)
        tape.output("logits", model.lm_head)
        model.rope_deltas = None
        with torch.inference_mode():
            model(**inputs, use_cache=False)
    # pictures and films pass the vision encoder in two calls, pictures first
    return tape.joined()


class Tape:
    """Keeps what modules take and give, flattened to [rows, channels], one piece for each call."""

    def __init__(self) -> None:
        self.pieces: dict[str, list[np.ndarray]] = defaultdict(list)
        self.hooks: list[Any] = []

    def input(self, name: str, module: Any, layout: Callable = lambda x: x) -> None:
        """What `module` takes; `layout` puts its channels last."""
        self.hooks.append(module.register_forward_pre_hook(lambda module, args: self._keep(name, layout(args[0]))))

    def output(self, name: str, module: Any, layout: Callable = lambda x: x) -> None:
        """What `module` gives."""

        def hook(module: Any, args: Any, value: Any) -> None:
            self._keep(name, layout(value[0] if isinstance(value, tuple) else value))

        self.hooks.append(module.register_forward_hook(hook))

    def stack(self, part: str, layers: Any, last: Any) -> None:
        """`{part}.input`, what the first layer takes; `{part}.layers.{i}`; `{part}.output`, what `last` gives."""
        self.input(f"{part}.input", layers[0])
        self.output(f"{part}.output", last)
        for index, layer in enumerate(layers):
            self.output(f"{part}.layers.{index}", layer)

    def joined(self) -> Trace:
        return {name: np.concatenate(parts) if len(parts) > 1 else parts[0] for name, parts in self.pieces.items()}

    def _keep(self, name: str, value: Any) -> None:
        self.pieces[name].append(value.float().reshape(-1, value.shape[-1]).numpy().copy())


@contextmanager
def recorded() -> Iterator[Tape]:
    """A tape whose hooks are gone afterwards."""
    tape = Tape()
    try:
        yield tape
    finally:
        for hook in tape.hooks:
            hook.remove()


def position_ids(model: Any, inputs: dict[str, Any]) -> tuple[np.ndarray, int]:
    """The reference's own positions of a single prompt, int64 [3, T], and that of the first token it generates."""
    heard = inputs.get("feature_attention_mask")
    ids, delta = model.get_rope_index(
        inputs["input_ids"],
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        inputs["attention_mask"],
        inputs.get("use_audio_in_video", False),
        None if heard is None else heard.sum(dim=1),
        inputs.get("video_second_per_grid"),
    )
    return ids[:, 0].long().numpy(), int(delta.reshape(-1)[0]) + inputs["input_ids"].shape[1]


def lazy_thinker(
    folder: str | Path, tensors: Mapping[str, Tensor], *, on_load: Callable[[str], None] | None = None
) -> Any:
    """The Thinker of a published folder, float32 and SDPA, that holds the weights of one layer at a time.

    Args:
        tensors: published tensors by full name ("thinker.model.norm.weight").
        on_load: called with a layer's name when its weights are about to be read.
    """
    _, transformers = pytorch()
    config = transformers.Qwen2_5OmniThinkerConfig.from_pretrained(folder, local_files_only=True)
    model = _lazy(transformers.Qwen2_5OmniThinkerForConditionalGeneration, config, "thinker", tensors, on_load)
    # tables that no checkpoint holds; on the meta device they have no values
    sinusoids = model.audio_tower.positional_embedding
    model.audio_tower.positional_embedding = type(sinusoids)(sinusoids.length, sinusoids.channels)
    model.visual.rotary_pos_emb = type(model.visual.rotary_pos_emb)(model.visual.config)
    return model


def lazy_talker(
    folder: str | Path, tensors: Mapping[str, Tensor], *, on_load: Callable[[str], None] | None = None
) -> Any:
    """The Talker of a published folder, as `lazy_thinker`."""
    _, transformers = pytorch()
    config = transformers.Qwen2_5OmniConfig.from_pretrained(folder, local_files_only=True).talker_config
    return _lazy(transformers.Qwen2_5OmniTalkerForConditionalGeneration, config, "talker", tensors, on_load)


def _lazy(kind: Any, config: Any, part: str, tensors: Mapping[str, Tensor], on_load) -> Any:
    torch, _ = pytorch()
    quiet()
    with torch.device("meta"):
        model = kind._from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.model.rotary_emb = type(model.model.rotary_emb)(model.model.config)
    for name, module in weight_units(model):
        module.register_forward_pre_hook(_loader(torch, f"{part}.{name}", tensors, on_load))
        module.register_forward_hook(_drop)
    return model.eval()


def weight_units(model: Any) -> Iterator[tuple[str, Any]]:
    """The parts that are loaded together: each layer of a stack, and each module outside them that has parameters."""
    torch, _ = pytorch()

    def walk(name: str, module: Any, in_stack: bool) -> Iterator[tuple[str, Any]]:
        if in_stack or any(True for _ in module.parameters(recurse=False)):
            yield name, module
            return
        for child_name, child in module.named_children():
            yield from walk(f"{name}.{child_name}".lstrip("."), child, isinstance(module, torch.nn.ModuleList))

    yield from walk("", model, False)


def _loader(torch: Any, prefix: str, tensors: Mapping[str, Tensor], on_load) -> Callable:
    def load(module: Any, args: Any) -> None:
        if on_load is not None:
            on_load(prefix)
        state = {
            name: torch.from_numpy(tensors[f"{prefix}.{name}"].read().astype(np.float32))
            for name, _ in module.named_parameters()
        }
        module.load_state_dict(state, assign=True)

    return load


def _drop(module: Any, args: Any, output: Any) -> None:
    module.to("meta")
