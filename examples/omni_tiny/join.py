"""One checkpoint of parts that were trained apart: sound on one way, the Thinker and the Talker on another.

python -m examples.omni_tiny.join --base runs/talker_icl/model --take dit=runs/token2wav/model --to speaking
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from examples.omni_tiny.program import run_main
from omni_jax.errors import OmniError

EARS = ("conv1", "conv2")  # beside the layers below the codes


@dataclass(frozen=True)
class Args:
    """Write a copy of a checkpoint with parts of others, and with its training's files left out.

    example:
      python -m examples.omni_tiny.join --base a --take bigvgan=b --to c
    """

    base: Annotated[Path, arg(metavar="DIR")]
    """The checkpoint that all other parts and files are of."""
    to: Annotated[Path, arg(metavar="DIR")]
    """The folder to write."""
    take: Annotated[tuple[str, ...], arg(metavar="PART=DIR")] = ()
    """Parts, and the checkpoints that they are taken from; DIR+DIR takes the mean of several that began alike
    (Wortsman et al. 2022, arXiv:2203.05482)."""
    ears: Annotated[Path | None, arg(metavar="DIR")] = None
    """A checkpoint whose speech tokenizer's lower layers become those of the audio encoder."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of all parameters; None leaves each as it is."""


def main(args: Args) -> None:
    """Writes the folder, whole or not at all.

    Raises:
        OmniError: a checkpoint is missing, or its parts do not fit.
    """
    from omni_jax.config_json import read_config
    from omni_jax.interop.restore import restore_params
    from omni_jax.sharding.mesh import make_mesh
    from omni_jax.training.checkpoints_model import save_model

    model, parts = read_config(args.base), {}
    for part, folders in _taken(args.take).items():
        parts[part] = mean([restore_params(folder, model, components=(part,))[part] for folder in folders])
    if args.ears is not None:
        hears = restore_params(args.ears, model, components=("speech_tokenizer",))["speech_tokenizer"]
        encoder = restore_params(args.base, model, components=("audio_encoder",))["audio_encoder"]
        parts["audio_encoder"] = with_ears(encoder, hears)
    about = {"joined": {key: str(value) for key, value in vars(args).items()}}
    save_model(args.to, parts, model, source=args.base, mesh=make_mesh(fsdp=1), dtype=args.dtype, about=about)
    print(f"{', '.join(sorted(parts)) or 'nothing new'} beside the parts of {args.base}, in {args.to}")


def _taken(given: tuple[str, ...]) -> dict[str, list[Path]]:
    pairs = [each.partition("=") for each in given]
    if any(not folder for _, _, folder in pairs):
        raise OmniError(f"--take {' '.join(given)}: give PART=DIR for each, as in --take bigvgan=runs/vocoder/model")
    return {part: [Path(folder) for folder in folders.split("+")] for part, _, folders in pairs}


def mean(trees: Sequence[Any]) -> Any:
    """Of parameters of the same part, computed in float32 and kept in their dtype."""
    import jax
    import jax.numpy as jnp

    def of(*leaves):
        return jnp.mean(jnp.stack([leaf.astype(jnp.float32) for leaf in leaves]), axis=0).astype(leaves[0].dtype)

    return trees[0] if len(trees) == 1 else jax.tree.map(of, *trees)


def with_ears(encoder: Mapping[str, Any], hears: Mapping[str, Any]) -> dict[str, Any]:
    """An audio encoder whose convolutions and lower layers are those of a speech tokenizer below its codes."""
    import jax
    import jax.numpy as jnp

    below = jax.tree.leaves(hears["layers"])[0].shape[0]
    # of two dtypes the wider one: a float32 tokenizer is not rounded by a bfloat16 base
    layers = jax.tree.map(
        lambda own, heard: own.astype(jnp.promote_types(own.dtype, heard.dtype)).at[:below].set(heard),
        encoder["layers"],
        hears["layers"],
    )
    return {**encoder, **{name: hears[name] for name in EARS}, "layers": layers}


if __name__ == "__main__":
    run_main(main, Args)
