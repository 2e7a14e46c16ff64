"""Every error that a user of spaner can cause, on one page.

    SpanerError
    ├── CacheError        a cache or table that cannot be used as asked
    │   ├── Unsealed      extraction has not finished
    │   ├── Mismatch      it was made with other settings (the message names the fields)
    │   ├── Corrupt       bytes differ from their checksum
    │   └── Busy          another live process is writing it
    ├── DatasetError      files, labels or splits that do not fit together
    ├── EncoderError      weights or models that cannot be loaded
    ├── RecipeError       an option, recipe or configuration value that has no meaning
    └── RunError          a trained run that cannot be read or used

A message is one line of four parts: what, found, expected, do next. The command line prints it and exits
with status 1. Anything else that escapes is a bug of ours and shows its traceback.
"""


class SpanerError(Exception):
    """A mistake or circumstance that the user can act on; the message says how."""


class CacheError(SpanerError):
    """A cache or table is missing, has another layout or cannot answer."""


class Unsealed(CacheError):
    """The table's extraction has not finished."""


class Mismatch(CacheError):
    """The settings differ from those the table was made with."""


class Corrupt(CacheError):
    """Stored bytes differ from their checksum."""


class Busy(CacheError):
    """Another live process is writing the table."""


class DatasetError(SpanerError):
    """Files, labels or splits are missing or contradict each other."""


class EncoderError(SpanerError):
    """An encoder or its weights cannot be loaded."""


class RecipeError(SpanerError):
    """An option or recipe holds an unknown name or an impossible value."""


class RunError(SpanerError):
    """A trained run is missing, incomplete or does not fit the cache."""
