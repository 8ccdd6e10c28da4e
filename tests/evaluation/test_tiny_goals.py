"""The goals of Omni-tiny as they were set beforehand (issue 6, "How we know"): none is moved, added or lost unseen."""

import pytest

from omni_jax.evaluation.suites import load_suite

GOALS = {
    "tiny": {
        # 1. hears
        "hears_unseen_speakers": ("at most", 0.08),
        "hears_human": ("at most", 0.04),
        "hears_human_strings": ("at most", 0.04),
        "hears_asterisk_digits": ("at most", 0.10),
        # 2. sees
        "sees_digit": ("at least", 0.97),
        "sees_string": ("at least", 0.90),
        "sees_shapes": ("at least", 0.95),
        # 3. watches
        "watches": ("at least", 0.90),
        "watches_silenced": ("chance", "kind"),
        "watches_blinded": ("chance", "kind"),
        "watches_no_sound": ("chance", "kind"),
        "watches_no_picture": ("chance", "kind"),
        "watches_first": ("at least", 0.85),
        "watches_first_shuffled": ("worse than", "watches_first"),
        "watches_first_silenced": ("worse than", "watches_first"),
        "watches_first_blinded": ("worse than", "watches_first"),
        "watches_first_no_sound": ("worse than", "watches_first"),
        "watches_first_no_picture": ("worse than", "watches_first"),
        # 4. speaks
        "speaks_wer": ("at most", 0.10),
        "speaks_voice": ("at least", 0.95),
        "speaks_mos": ("at least", 2.8),
        # 5. converses
        "converses_picture": ("at least", 0.85),
        "converses_digit": ("at least", 0.85),
        # 6. preferences
        "speaks_hard_wer": ("better than before", None),
        "speaks_hard_pauses": ("better than before", None),
    },
    # 1. hears, a person who was left out
    "tiny_left_out": {
        f"hears_{name}": ("at most", 0.20) for name in ("jackson", "nicolas", "theo", "yweweler")
    },
}  # fmt: skip


@pytest.mark.parametrize("suite", GOALS)
def test_goals_are_those_that_were_set(suite):
    measures = [measure for task in load_suite(suite).tasks for measure in task.measures]
    assert {m.name: (m.goal.rule, m.goal.value) for m in measures if m.goal is not None} == GOALS[suite]
    # a bound on the wrong side would be no goal
    higher = {"at most": False, "at least": True}
    bounds = [measure for measure in measures if measure.goal is not None and measure.goal.rule in higher]
    assert all(higher[measure.goal.rule] == measure.metric.higher_is_better for measure in bounds)
