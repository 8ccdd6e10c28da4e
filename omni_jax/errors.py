"""The project's few exceptions. Each message says what is wrong, where, and what would mend it.

The command line catches `OmniError` and exits with status 2; anything else is a bug.
"""


class OmniError(Exception):
    """Base of every error that a user can cause and mend."""


class ConfigError(OmniError):
    """A configuration lacks a key, holds a bad value, or asks for mathematics that is not supported."""


class MediaError(OmniError):
    """A media file is missing, corrupt, empty, or of a size or kind that the model cannot take."""


class MediaLengthError(MediaError):
    """Sound, as such good, that is longer than the limit it was opened with."""


class PromptError(OmniError):
    """A conversation is malformed, or its placeholders and its media do not match."""


class CapacityError(OmniError):
    """A request is larger than the largest bucket, the cache, or the model's position range."""


class CheckpointError(OmniError):
    """A checkpoint is missing, incomplete, corrupt, or does not fit the configuration."""


class DataError(OmniError):
    """Training data is malformed, corrupt beyond the stated share, or not what a run was begun with.

    kind: for a single sample that cannot be used, one of `DATA_ERROR_KINDS`, so that reports can count them.
    """

    def __init__(self, message: str, kind: str = "malformed"):
        super().__init__(message)
        self.kind = kind

    def __reduce__(self):  # it travels between processes
        return type(self), (str(self), self.kind)


DATA_ERROR_KINDS = ("malformed", "roles", "empty mask", "too long", "missing media", "corrupt media")


class ShardingError(OmniError):
    """A parameter axis does not divide over its mesh axis."""


class NumericsError(OmniError):
    """The model produced NaN or infinity."""
