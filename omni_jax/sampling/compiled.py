"""How many programs this process has compiled: their number is bounded by the buckets, and tests hold it."""

from omni_jax.sampling import programs, speech_programs, token2wav

PROGRAMS = (*programs.PROGRAMS, *speech_programs.PROGRAMS, *token2wav.PROGRAMS)


def compiled_programs_by_name() -> dict[str, int]:
    """How many variants of each program there are."""
    return {program.__name__: program._cache_size() for program in PROGRAMS}


def compiled_programs() -> int:
    """How many programs there are in all."""
    return sum(compiled_programs_by_name().values())
