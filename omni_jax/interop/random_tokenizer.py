"""The tokenizer of a small checkpoint: byte-level BPE, trained on the spot, with the published control tokens.

Ids 0 ... 999 are text, 1000 ... 1021 are control tokens in the published order (1000 stands where 151643 does).
"""

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

FIRST_SPECIAL_ID = 1000
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|vision_pad|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
_PLAIN = SPECIAL_TOKENS[14:]  # shown in decoded text, as published

# Qwen2's split before BPE: contractions, words with one leading sign, single digits, punctuation, white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- set count = namespace(image=0, video=0, audio=0) -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' or 'image' in item or 'image_url' in item -%}
{%- set count.image = count.image + 1 -%}
{%- if add_vision_id -%}{{- 'Picture ' ~ count.image ~ ': ' -}}{%- endif -%}
{{- '<|vision_bos|><|IMAGE|><|vision_eos|>' -}}
{%- elif item['type'] == 'audio' or 'audio' in item or 'audio_url' in item -%}
{%- set count.audio = count.audio + 1 -%}
{%- if add_audio_id -%}{{- 'Audio ' ~ count.audio ~ ': ' -}}{%- endif -%}
{{- '<|audio_bos|><|AUDIO|><|audio_eos|>' -}}
{%- elif item['type'] == 'video' or 'video' in item -%}
{%- set count.video = count.video + 1 -%}
{%- if add_vision_id -%}{{- 'Video ' ~ count.video ~ ': ' -}}{%- endif -%}
{{- '<|vision_bos|><|VIDEO|><|vision_eos|>' -}}
{%- elif 'text' in item -%}
{{- item['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}"""

_TEXT = """\
system user assistant You are a helpful assistant. What is in this picture? Please describe the image in one sentence.
What do you hear in this recording? Somebody speaks slowly about the weather while rain falls on a metal roof.
You are Qwen, a virtual human, capable of perceiving auditory and visual inputs, as well as generating text and speech.
The morning train left the station at seven minutes past six, carrying farmers, students and a piano tuner across the
river. Nobody noticed the small dog under the bench until it began to sing along with the wheels. When the conductor
asked whose animal it was, every passenger looked out of the window, for the fields were full of yellow flowers and a
white horse was running beside the track. "I have a ticket for him," said the piano tuner at last, "although he will
insist that he never needed one." Later they shared bread, cheese, apples and cold tea; someone told a story of three
brothers who built a lighthouse in the desert and waited forty years for the sea. Did it come? Yes, one night in winter,
quietly, without a single wave. They lit the lamp, and far away a captain turned his ship and thanked the stars.
Numbers: 0 1 2 3 4 5 6 7 8 9, 10 20 30, 1024, 3.14159. Colours: red, green, blue, orange, purple, black, brown, grey.
First, boil water and add salt. Second, cook the rice for twelve minutes. Finally, mix lemon juice with olive oil.
def area(width, height): return width * height  # square metres
if answer is None: raise ValueError("the question was never asked")
It's true that we don't know; they've said she'll arrive tomorrow, I'm sure you'd understand, and we're ready.
Music begins, a violin plays, then drums, trumpets, laughter, footsteps, a door closes, birds, thunder, silence.
A video shows two children throwing a ball over the garden wall; the older one waves, the camera moves to the left.
The quick brown fox jumps over the lazy dog. How vexingly quick daft zebras jump! Pack my box with five dozen jugs.
Guten Morgen, wie geht es Ihnen? Bonjour, quel temps fait-il? Buenos dias, gracias por venir. Добрый день, спасибо.
你好，世界。请描述这张图片。 今日はいい天気ですね。 안녕하세요. 😀 🎵
"""


def write_tokenizer(folder: Path, texts: Iterable[str] = ()) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.json into `folder`; always the same bytes.

    texts: what it is to be short for, beside a page of anything, which fills the vocabulary up.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        chain(_TEXT.splitlines(keepends=True), texts),
        trainers.BpeTrainer(
            vocab_size=FIRST_SPECIAL_ID,
            min_frequency=1,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    if tokenizer.get_vocab_size() != FIRST_SPECIAL_ID:
        raise AssertionError(f"the training text gives {tokenizer.get_vocab_size()} tokens, not {FIRST_SPECIAL_ID}")
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=name not in _PLAIN) for name in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))

    added = {
        str(FIRST_SPECIAL_ID + i): {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": name not in _PLAIN,
        }
        for i, name in enumerate(SPECIAL_TOKENS)
    }
    roles = {
        "image_token": "<|IMAGE|>",
        "audio_token": "<|AUDIO|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "extra_special_tokens": roles,
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "processor_class": "Qwen2_5OmniProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
        **roles,
    }
    for name, data in (("tokenizer_config.json", config), ("chat_template.json", {"chat_template": CHAT_TEMPLATE})):
        (folder / name).write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
