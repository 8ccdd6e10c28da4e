"""How much of everything is made."""

from dataclasses import dataclass, fields, replace

from omni_jax.errors import ConfigError


@dataclass(frozen=True)
class Amounts:
    """Numbers of files or lines. The time goes into Kokoro, 1.5 s a recording on one processor, and joe, 0.2 s."""

    talker_heart: int = 16_000
    """Texts that heart reads, the fastest voice and the one that the Talker learns from; no fewer than the others."""
    talker_joe: int = 3000
    """Texts that joe reads, for Token2Wav; all but the first hundred are others than heart's."""
    talker_kokoro: int = 500
    """Texts that emma and onyx read, each, for Token2Wav; the first of heart's."""
    hearing_fast: int = 7200
    """Clips of the nine fast voices, to hear."""
    hearing_kokoro: int = 3200
    """Clips of Kokoro's voices and of speakers between two of them, to hear: a quarter as many recordings."""
    joined: int = 2400
    """Digits said one by one and joined, by the fast voices, to hear."""
    questions: int = 8
    """Speakers that ask each question in each wording."""
    digits: int = 60
    """Times that each single digit is said."""
    human: int = 3000
    """Strings of human digits, over all speakers."""
    digit_pictures: int = 120_000
    """So many that few are seen twice: of 30,000 the eyes knew nearly all, and read a third of new strings wrong. In
    every second one the digits are bent."""
    shape_pictures: int = 30_000
    films: int = 6000
    human_films: int = 1600
    """Films in which digits are said by people, over all speakers; in a third there is another sound, as in all."""
    chats: int = 24_000
    """Conversations for instruction tuning."""
    picture_chats: int = 40_000
    """Conversations on pictures for the eyes alone."""
    read_aloud: int = 20_000
    """Requests to say a typed text, before those are left out whose text is one of the tests'."""
    texts: int = 4000
    """Plain texts."""
    compared: int = 20_000
    """Pairs of written digits that are compared."""
    hard: int = 250
    """Texts that are hard to say, as prompts for preferences."""
    tests: int = 1
    """Tests have fixed sizes; 0 makes none."""

    def __post_init__(self):
        if not 1 <= self.talker_joe <= self.talker_heart or self.talker_kokoro > self.talker_heart:
            raise ConfigError(
                f"talker-joe {self.talker_joe}, talker-kokoro {self.talker_kokoro}: heart reads {self.talker_heart}, "
                "and the others read no more. Give smaller numbers, at least 1 for joe, or a larger talker-heart."
            )

    def scaled(self, scale: float) -> "Amounts":
        """All training amounts times `scale`, at least a few of each."""
        if scale == 1:
            return self
        least = {"questions": 1, "digits": 4}
        number = {f.name: max(round(getattr(self, f.name) * scale), least.get(f.name, 8)) for f in fields(self)}
        return replace(self, **(number | {"tests": self.tests}))
