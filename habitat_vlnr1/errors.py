"""The errors of this package: what is wrong with input, config or files, in one line that says where and what to do.

Every one is a `VLNR1Error`, and that a `ValueError`. A command prints the line and ends (`trainers.base`); anything
else is a fault of the program and comes with its traceback.
"""


class VLNR1Error(ValueError):
    """Something given to this package is not what it should be; the message names place and remedy."""


class FileError(VLNR1Error):
    """A file that cannot be read, or does not hold what it should."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder that is not there."""


class RunError(VLNR1Error, RuntimeError):
    """Something that only shows while it runs: a worker process that ended, a walk that left its way."""


class RecordError(FileError):
    """Episodes on disk (VLN-Ego, ShareGPT, Parquet) that are not what they should be."""


class ResultsError(FileError):
    """Results on disk that cannot be used."""


class CheckpointError(FileError):
    """A checkpoint that is missing, broken, or of another kind than needed."""


class SubmissionError(VLNR1Error):
    """What a leaderboard would refuse; the message names the episode and what is wrong."""
