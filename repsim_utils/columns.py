"""Which columns of a table are features, and their values: a number of the sample or a label is none."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

log = logging.getLogger(__name__)
FRACTIONS, WHOLE, LISTS, WHOLE_LISTS, OTHER = "fractions", "whole numbers", "lists", "lists of whole numbers", "other"
LEAST_ROWS = 8  # of which whole numbers rise or fall all along only if they count the samples


class ChoiceError(ValueError):
    """It is not clear what is meant, or that is no feature; the message says what to write."""


def features(table: pa.Table, path: str, name: str | None = None) -> NDArray[Any]:
    """Features of a table, one row a sample.

    Parameters
    ----------
    table : pyarrow.Table
    path : str
        What errors and the warning of what is left out call it.
    name : str, optional
        A column of lists, or columns of numbers with commas between them; ``c*`` names several. By default the only
        column of lists, else all columns of fractions, else columns of whole numbers that are of one type and differ in
        their names by a number.

    Returns
    -------
    ndarray
        (n, d), as stored.

    Raises
    ------
    ChoiceError
        If it is not clear which columns are meant, or one is no feature or has a gap.
    """
    if twice := [column for column, times in Counter(table.column_names).items() if times > 1]:
        raise ChoiceError(f"{path} has two columns called {twice[0]}: rename one")
    kinds = {column: _kind(table.schema.field(column).type) for column in table.column_names}
    if name is None:
        chosen, left = _default(table, path)
        if left:
            about = f"{len(chosen)} columns, {_short(chosen)}" if len(chosen) > 1 else f"column {chosen[0]}"
            log.warning("%s: features are %s; left out: %s", path, about, _told(left, table))
        if odd := list(_counted(table, chosen if kinds[chosen[0]] == FRACTIONS else [])):
            log.warning(
                "%s: all of %s is whole numbers and counts as features; name the others if not", path, _short(odd)
            )
    else:
        chosen = _named(name, kinds, table, path)
    if kinds[chosen[0]] in (LISTS, WHOLE_LISTS):
        return _of_lists(table.column(chosen[0]), f"{path}: column {chosen[0]}")
    return np.stack([_of_numbers(table.column(column), f"{path}: column {column}") for column in chosen], axis=1)


def check_order(tables: tuple[pa.Table, pa.Table], paths: tuple[str, str]) -> None:
    """Refuse two tables that have the same samples in another order, by an index or by columns that are no features.

    Raises
    ------
    ChoiceError
        Which names the column, and says what to do.
    """
    named = [_of_pandas(table)[0] for table in tables]
    beside = [set(_default(table, path)[1]) for table, path in zip(tables, paths, strict=True)]
    for column in sorted((named[0] & named[1]) | (beside[0] & beside[1])):
        kinds = [table.schema.field(column).type for table in tables]
        if column not in named[0] and not all(map(_may_name, kinds)):
            continue
        a, b = (table.column(column).to_pylist() for table in tables)
        moved = a != b and len(a) == len(b) and (column in named[0] or (len(set(a)) == len(a) and set(a) == set(b)))
        if moved:
            row = next(i for i, (u, v) in enumerate(zip(a, b, strict=True)) if u != v)
            raise ChoiceError(
                f"{paths[0]} and {paths[1]} have other samples in row {row}, by their column {column}: {a[row]!r} and "
                f"{b[row]!r}. Sort both by it; or name the features (FILE:COLUMNS), and rows are matched by their place"
            )


def _may_name(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _kind(kind: pa.DataType) -> str:
    if _is_list(kind):
        inner = _kind(kind.value_type)
        return {FRACTIONS: LISTS, LISTS: LISTS, WHOLE: WHOLE_LISTS, WHOLE_LISTS: LISTS}.get(inner, OTHER)
    if isinstance(kind, pa.FixedShapeTensorType):
        return LISTS
    if pa.types.is_floating(kind) or (pa.types.is_decimal(kind) and kind.scale > 0):
        return FRACTIONS
    whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)
    return WHOLE if whole else OTHER


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _of_pandas(table: pa.Table) -> tuple[set[str], set[str]]:
    """Columns that were the index of a data frame, and its categories, whatever their type."""
    about = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
    index = {column for column in about.get("index_columns", []) if isinstance(column, str)}
    index |= {column for column in table.column_names if re.fullmatch(r"__index_level_\d+__", column)}
    columns = about.get("columns", [])
    return index, {str(column["name"]) for column in columns if column.get("pandas_type") == "categorical"}


def _counted(table: pa.Table, fractions: list[str]) -> dict[str, bool]:
    """Columns of fractions that hold whole numbers, where others do not; and whether these rise or fall all along."""
    found: dict[str, bool] = {}
    for column in fractions:
        values = table.column(column)
        if values.null_count or not _are_whole(_of_numbers(values.slice(0, 100), column)):  # most are done here
            continue
        steps = np.diff(_of_numbers(values, column).astype(np.float64))
        if steps.any() and _are_whole(_of_numbers(values, column)):
            found[column] = len(table) >= LEAST_ROWS and bool((steps > 0).all() or (steps < 0).all())
    return found if len(found) < len(fractions) else {}


def _are_whole(values: NDArray[Any]) -> bool:
    return bool((values == np.rint(values)).all())


def _default(table: pa.Table, path: str) -> tuple[list[str], list[str]]:
    """The features of a table of which nothing is named, and what is left out."""
    index, categories = _of_pandas(table)
    kinds = {field.name: _kind(field.type) for field in table.schema if field.name not in index}
    kinds |= {column: OTHER for column in categories if column in kinds}
    counted = _counted(table, [column for column in kinds if kinds[column] == FRACTIONS])
    kinds |= {column: WHOLE for column, counts in counted.items() if counts}
    of = {kind: [column for column in kinds if kinds[column] == kind] for kind in set(kinds.values())}
    lists = of.get(LISTS, []) + of.get(WHOLE_LISTS, [])
    fractions, whole = of.get(FRACTIONS, []), of.get(WHOLE, [])
    if len(lists) > 1:
        raise ChoiceError(f"{path} holds several arrays; name one: {', '.join(f'{path}:{column}' for column in lists)}")
    kin = {column: (_stem(column), table.schema.field(column).type) for column in whole}
    alike = Counter(kin.values())
    if lists and (kinds[lists[0]] == LISTS or not fractions):
        chosen = lists
    elif fractions and not lists and len(whole) <= len(fractions):
        chosen = fractions
    elif whole and not (lists or fractions) and len(alike) == 1 and (_stem(whole[0]) or len(kinds) == 1):
        chosen = whole
    elif not (lists or fractions or whole):
        raise ChoiceError(f"{path} holds no column of numbers; there is {_told(list(kinds), table)}")
    else:
        group = [column for column in whole if kin[column] == alike.most_common(1)[0][0]]
        options = [_written(names, kinds, path) for names in (lists, fractions, group) if names]
        raise ChoiceError(
            f"{path} holds {_told(list(kinds), table)}: whole numbers may be features, labels or numbers of the "
            f"samples. Name the features, such as {' or '.join(options)}"
        )
    return chosen, [column for column in kinds if column not in chosen]


def _stem(column: str) -> str:
    """A name without its numbers; nothing, if it has none."""
    return re.sub(r"[0-9]+", "#", column) if re.search("[0-9]", column) else ""


def _written(names: list[str], kinds: dict[str, str], path: str) -> str:
    """What to write for these columns: a pattern, if it is short for them and no others."""
    pattern = f"{re.split('[0-9]', names[0])[0] or '[0-9]'}*"
    alike = [column for column in kinds if fnmatchcase(column, pattern) and kinds[column] != OTHER]
    return f"{path}:{pattern}" if len(names) > 3 and alike == names else f"{path}:{','.join(names)}"


def _short(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:3])} … {names[-1]} ({len(names)} columns)"


def _told(names: list[str], table: pa.Table) -> str:
    """Columns with their types."""
    by_type: dict[str, list[str]] = {}
    for column in names:
        by_type.setdefault(str(table.schema.field(column).type).partition("<")[0], []).append(column)
    return "; ".join(f"{_short(columns)} ({kind})" for kind, columns in by_type.items()) or "nothing"


def _named(name: str, kinds: dict[str, str], table: pa.Table, path: str) -> list[str]:
    """The columns that a text names."""
    found: list[str] = []
    for part in [name] if name in kinds else name.split(","):
        exact = [column for column in (part, part.strip()) if column in kinds][:1]
        numbers = [column for column in kinds if kinds[column] in (FRACTIONS, WHOLE)]
        some = exact or [column for column in numbers if fnmatchcase(column, part.strip())]
        if not some:
            raise ChoiceError(f"{path} holds no {part.strip() or 'array'}; there is {_told(list(kinds), table)}")
        found += [column for column in some if column not in found]
    for column in found:
        if kinds[column] == OTHER:
            raise ChoiceError(f"{path}: column {column} holds {table.schema.field(column).type}: features are numbers")
        if kinds[column] in (LISTS, WHOLE_LISTS) and len(found) > 1:
            raise ChoiceError(f"{path}: column {column} holds lists: name it alone, or columns of numbers")
    return found


def _no_gap(column: pa.ChunkedArray, where: str) -> None:
    if column.null_count:
        row, rows = int(np.flatnonzero(column.is_null().to_numpy())[0]), len(column)
        raise ChoiceError(
            f"{where} has no value in row {row} ({column.null_count} of {rows} are missing): fill them, or leave these "
            "rows out of both files"
        )


def _of_numbers(column: pa.ChunkedArray, where: str) -> NDArray[Any]:
    """A column of numbers (n,)."""
    _no_gap(column, where)
    return (column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column).to_numpy()


def _of_lists(column: pa.ChunkedArray, where: str) -> NDArray[Any]:
    """A column of lists of one length, as a matrix."""
    _no_gap(column, where)
    if isinstance(column.type, pa.FixedShapeTensorType):
        if len(column.type.shape) > 1:
            raise ChoiceError(f"{where} holds arrays of shape {tuple(column.type.shape)}: average or flatten each")
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    if _is_list(column.type.value_type):
        raise ChoiceError(f"{where} holds lists of lists: average or flatten each, so that a row is one list")
    lengths = pc.list_value_length(column).to_numpy()
    width = int(np.bincount(lengths).argmax()) if len(lengths) else 0
    if (odd := np.flatnonzero(lengths != width)).size:
        raise ChoiceError(
            f"{where}: the list of row {odd[0]} has {lengths[odd[0]]} entries, others have {width}: make them alike, "
            "or leave these rows out of both files"
        )
    entries = pc.list_flatten(column)
    if entries.null_count:
        first = int(np.flatnonzero(entries.is_null().to_numpy())[0])
        raise ChoiceError(f"{where}: the list of row {first // width} has no value at {first % width}: fill it")
    return _of_numbers(entries, where).reshape(len(column), width)
