"""What can go wrong with files and checkpoints. Bad arguments to operations raise TypeError and ValueError."""


class FasttagError(Exception):
    """Base of every error about a file or checkpoint."""


class FormatError(FasttagError, ValueError):
    """The file is readable but is not what it should be: unknown format, wrong schema, missing dataset or column."""


class CorruptFileError(FasttagError, OSError):
    """The file is damaged: truncated, failing a checksum, lying about its size, or holding impossible values."""


class CheckpointError(FasttagError, ValueError):
    """A checkpoint cannot be used: wrong model, missing weights, or no word on which class is the signal."""
