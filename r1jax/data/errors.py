"""The one error of this room: something is wrong with the data, and the message says where."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used as it is: the message names the file and line, the document or the column."""
