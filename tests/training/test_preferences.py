"""Guards, scores and the choice of pairs; word error rates; rows for the reference policy."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.example_context import add, excess
from input_pipeline.training_batch import Sizes
from omni_jax.errors import ConfigError, DataError
from omni_jax.training import transcripts
from omni_jax.training.preferences import (
    GuardOptions,
    SpokenSample,
    Tally,
    choose_pairs,
    guard_samples,
    has_loop,
)
from omni_jax.training.reference import plan_rows, read_pairs, reference_shape
from omni_jax.training.transcripts import language_of, normal_words, word_error_rate


def sample(seed=0, wer=0.0, pause=0.0, codes=20, **options):
    return SpokenSample(seed, tuple(range(codes)), "stop", wer=wer, pause=pause, **options)


def drawn(codes, finish_reason="stop"):
    return SpokenSample(0, tuple(codes), finish_reason)


def guards(samples, tokens=2, num_codes=1000):
    return [each.guard for each in guard_samples(samples, tokens, num_codes)]


def test_each_guard_stops_what_it_is_for():
    samples = [
        drawn(range(40)),
        drawn(range(44)),
        drawn(range(50)),
        drawn([], "silent"),
        drawn([*range(39), 1000]),
        drawn(range(40), "length"),
        drawn(range(40), "loop"),
        drawn([7] * 100),
        drawn(range(89)),
        drawn(range(21)),
    ]
    # of those that came to an end by themselves the median has 44 codes
    expected = [None, None, None, "silent", "unknown code", "no end", "loop", "loop", "length", "length"]
    assert guards(samples) == expected
    assert guards(samples[:3]) == [None] * 3


def test_with_few_answers_the_text_says_how_long_they_should_be():
    assert guards([drawn(range(60)), drawn(range(900))], tokens=4) == [None, "length"]
    assert guards([drawn(range(60)), drawn(range(900))], tokens=60) == ["length", None]


def test_loops_are_found_wherever_they_are():
    clear = list(range(200))
    assert not has_loop(clear, 25, 100)
    assert has_loop([*clear, *[3, 4, 5] * 34, *clear], 25, 100)
    assert not has_loop([*clear, *[3, 4, 5] * 30, *clear], 25, 100)
    assert has_loop(list(range(25)) * 4, 25, 100) and not has_loop(list(range(26)) * 4, 25, 100)
    assert not has_loop([], 25, 100) and not has_loop([1], 25, 100)


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 3), st.integers(6, 10))
@settings(max_examples=100, deadline=None)
def test_a_loop_is_what_its_definition_says(codes, cycle, span):
    windows = [codes[i : i + span] for i in range(len(codes) - span + 1)]
    plain = any(window[p:] == window[:-p] for window in windows for p in range(1, cycle + 1))
    assert has_loop(codes, cycle, span) == plain


def test_best_against_worst():
    samples = [sample(1, 0.5), sample(2, 0.0), sample(3, 0.3), sample(4, 0.1, pause=0.05), sample(5, 0.9)]
    choice = choose_pairs(samples, margin=0.1, most=2)
    assert [(w.seed, l.seed) for w, l in choice.pairs] == [(2, 5), (4, 1)]
    assert not choice.dropped
    assert len(choose_pairs(samples, margin=0.1, most=1).pairs) == 1
    assert len(choose_pairs(samples, margin=0.1, most=9).pairs) == 2  # each answer is in one pair at most


def test_pairs_without_margin_are_dropped_and_counted():
    close = [sample(1, 0.0), sample(2, 0.05), sample(3, 0.2), sample(4, 0.05)]
    choice = choose_pairs(close, margin=0.1)
    assert [(w.seed, l.seed) for w, l in choice.pairs] == [(1, 3)]
    assert choice.dropped == {"tie": 1}
    assert choose_pairs(close[:2], margin=0.1).dropped == {"no margin": 1}
    assert choose_pairs([sample(1), sample(2)], margin=0.0).dropped == {"tie": 1}  # even without any margin


def test_pauses_count_as_much_as_they_weigh():
    samples = [sample(1, 0.0, pause=0.4), sample(2, 0.2, pause=0.0)]
    assert [(w.seed, l.seed) for w, l in choose_pairs(samples, margin=0.1).pairs] == [(2, 1)]
    assert [(w.seed, l.seed) for w, l in choose_pairs(samples, margin=0.1, pause_weight=0).pairs] == [(1, 2)]


def test_what_a_guard_stopped_is_rejected_but_never_chosen():
    loop, long = sample(3, guard="loop", codes=90), sample(4, guard="no end", codes=80)
    silent = sample(5, guard="silent", codes=0)
    choice = choose_pairs([sample(1, 0.4), loop, long, silent, sample(2, 0.45)], margin=0.5)
    assert [(w.seed, l.seed) for w, l in choice.pairs] == [(1, 4), (2, 3)]
    assert choose_pairs([loop, long], margin=0.1).dropped == {"no answer to choose": 1}
    assert choose_pairs([sample(1), silent], margin=0.1).dropped == {"one answer only": 1}


def test_what_nobody_understands_is_not_chosen():
    samples = [sample(1, 0.6), sample(2, 0.7), sample(3, guard="loop")]
    assert choose_pairs(samples, margin=0.0).dropped == {"no answer to choose": 1}
    assert [(w.seed, l.seed) for w, l in choose_pairs(samples, margin=0.0, max_wer=0.6).pairs] == [(1, 3)]
    # by its score the better one, but for its pause: still only the other can be chosen
    samples = [sample(1, 0.55, pause=0.0), sample(2, 0.5, pause=0.5), sample(3, 0.55, pause=0.9)]
    assert [(w.seed, l.seed) for w, l in choose_pairs(samples, margin=0.1).pairs] == [(2, 3)]


@st.composite
def many_samples(draw):
    count, stopped = draw(st.integers(0, 8)), st.sampled_from([None, None, "loop", "length", "silent", "unknown code"])
    return [sample(i, draw(st.sampled_from([0, 0.1, 0.5, 1])), guard=draw(stopped)) for i in range(count)]


@settings(max_examples=100, deadline=None)
@given(many_samples(), st.sampled_from([0.0, 0.1, 0.4]), st.integers(1, 4))
def test_no_answer_is_in_two_pairs_and_every_pair_has_its_margin(samples, margin, most):
    choice = choose_pairs(samples, margin=margin, most=most)
    seeds = [each.seed for pair in choice.pairs for each in pair]
    assert len(seeds) == len(set(seeds)) and len(choice.pairs) <= most
    for chosen, rejected in choice.pairs:
        assert chosen.guard is None and chosen.wer <= 0.5 and rejected.guard not in ("silent", "unknown code")
        assert rejected.guard or rejected.wer - chosen.wer >= max(margin, 1e-9)
    assert choice.pairs or choice.dropped


def test_the_tally_is_of_all_texts():
    tally = Tally()
    samples = [sample(1, 0.0, 0.2), sample(2, 0.4, 0.0), sample(3, guard="loop"), sample(4, 0.2)]
    tally.add(samples, choose_pairs(samples, margin=0.1))
    tally.add([sample(1), sample(2)], choose_pairs([sample(1), sample(2)], margin=0.1))
    tally.leave_out("too long")
    report = tally.as_json()
    assert (report["prompts"], report["answers"], report["pairs"]) == (3, 6, 2)
    assert report["guarded"] == {"loop": 1} and report["dropped_prompts"] == {"too long": 1}
    assert report["dropped_pairs"] == {"tie": 1}
    assert report["wer"]["chosen"] == pytest.approx(0.1) and report["wer"]["rejected"] == pytest.approx(0.4)
    assert report["wer"]["all"] == pytest.approx(0.6 / 5) and report["pause"]["chosen"] == pytest.approx(0.1)
    assert Tally().as_json()["wer"]["all"] is None


def test_samples_survive_a_file():
    one = sample(3, 0.25, 0.5, transcript="héllo")
    assert SpokenSample.from_json(one.as_json()) == one


@pytest.mark.parametrize("options", [dict(shortest=2.0), dict(codes_per_token=0), dict(cycle=60), dict(cycle=0)])
def test_bad_guards(options):
    with pytest.raises(ConfigError):
        GuardOptions(**options)


def test_word_errors_are_counted_after_normalisation():
    assert word_error_rate("Mr. Smith's colour is twenty-five!", "mister smith is color IS 25", "en") == 0
    assert word_error_rate("The cat sat down.", "the hat sat", "en") == 0.5
    assert word_error_rate("Yes.", "yes yes yes", "en") == 2
    assert word_error_rate("Four seven one nine.", "four seven two nine", "en") == 1
    assert word_error_rate("Four seven one nine.", "four seven two nine", "en", digits_apart=True) == 0.25
    assert word_error_rate("Yes.", "", "en") == 1
    assert word_error_rate("你好，世界。", "你好 世间", "zh") == 0.25
    assert normal_words("你好，World。", "zh")[:2] == ["你", "好"]
    assert (language_of("Hello, 3"), language_of("你好 Anna")) == ("en", "zh")
    with pytest.raises(ConfigError, match="without words"):
        word_error_rate("...", "yes", "en")


def test_a_missing_library_is_named_with_its_extra():
    with pytest.raises(ConfigError, match=r"no_such_library is not installed.*omni-jax\[evaluation\]"):
        transcripts.library("no_such_library.part")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 900), st.integers(0, 3), st.integers(2, 300)), min_size=1, max_size=20))
def test_rows_of_one_shape_hold_all_pairs_in_order(numbers):
    sizes = [Sizes(tokens, audio_blocks=blocks, speech=speech, pairs=1) for tokens, blocks, speech in numbers]
    shape = reference_shape(sizes)
    rows = plan_rows(sizes, shape)
    assert [i for row in rows for i in row] == list(range(len(sizes)))
    assert all(not excess(add(*(sizes[i] for i in row)), shape) for row in rows)
    assert (shape.audio_blocks > 0) == any(blocks for _, blocks, _ in numbers)


def test_lines_that_hold_no_pair_are_named(tmp_path):
    file = tmp_path / "pairs.jsonl"
    for line, words in (
        ('{"messages": [{"role": "user", "content": "hi"}]}', "pairs.jsonl:2: holds no pair"),
        ('{"text": "hi"}', "pairs.jsonl:2: holds no pair"),
        ("{", "pairs.jsonl:2: not JSON"),
        ("[]", "pairs.jsonl:2: expected an object"),
    ):
        file.write_text(f"\n{line}\n")
        with pytest.raises(DataError, match=words):
            list(read_pairs(file))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(read_pairs(tmp_path / "none.jsonl"))
    assert Counter(plan_rows([], reference_shape([Sizes(1)]))) == Counter()
