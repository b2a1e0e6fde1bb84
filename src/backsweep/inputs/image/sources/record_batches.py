"""Parquet and Arrow files as record batches, a few rows in memory at once; what a file claims is checked."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from backsweep.core.errors import BadInput

ROWS = 16  # of a batch out of a Parquet file
MOST_COLUMN = 2**31  # bytes of a column in a row group, unpacked
_RATIO = 200  # to which a column may unpack
_COMPRESSION = 3  # field of such a message


def needed() -> None:
    """Make sure that pyarrow is there.

    Raises:
        BadInput: it is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as e:
        raise BadInput("Parquet and Arrow files need pyarrow: pip install 'backsweep[data]'") from e


def schema(file: Path) -> Any:
    """The columns of a file."""
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(str(file)) as table:
            return table.schema_arrow
    with file.open("rb") as f:
        return _stream(f)[0]


def of(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Some columns of a file, a few rows at a time, checked as a stranger's.

    Raises:
        BadInput: a column is not there, unpacks to far too much, or is damaged.
    """
    parts = _parquet(file, columns) if file.suffix.lower() == ".parquet" else _arrow(file)
    for batch in parts:
        if lost := [c for c in columns if c not in batch.schema.names]:
            raise BadInput(f"{file.name} has no column {lost[0]!r}, which other files of it have")
        batch = batch.select(list(columns))
        batch.validate(full=True)
        yield batch


def _parquet(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(str(file), pre_buffer=False, memory_map=False) as table:
        size = file.stat().st_size
        for i in range(table.metadata.num_row_groups):
            group = table.metadata.row_group(i)
            for j in range(group.num_columns):
                column = group.column(j)
                if column.path_in_schema.split(".")[0] not in columns:
                    continue
                unpacked, packed = column.total_uncompressed_size, min(column.total_compressed_size, size)
                if unpacked > MOST_COLUMN or (unpacked > 2**26 and unpacked > _RATIO * packed):
                    raise BadInput(f"{file.name} unpacks to {unpacked:,} bytes at once, too many")
        yield from table.iter_batches(batch_size=ROWS, columns=list(columns), use_threads=False)


def _arrow(file: Path) -> Iterator[Any]:
    import pyarrow as pa

    with file.open("rb") as f:
        schema, messages = _stream(f)
        for message in messages:
            if message.type != "record batch" or _compressed(message.metadata.to_pybytes()):
                raise BadInput(
                    f"{file.name} is compressed or has dictionaries, which is not read; save it with "
                    "save_to_disk, or as Parquet"
                )
            yield pa.ipc.read_record_batch(message, schema)


def _stream(f: IO[bytes]) -> tuple[Any, Any]:
    """The schema of an Arrow stream, and its messages; a file of Arrow is a stream after 8 bytes."""
    import pyarrow as pa

    if f.read(6) != b"ARROW1":
        f.seek(0)
    else:
        f.seek(8)
    messages = pa.ipc.MessageReader.open_stream(f)
    schema = pa.ipc.read_schema(messages.read_next_message())
    return schema, _messages(messages)


def _messages(messages: Any) -> Iterator[Any]:
    while True:
        try:
            yield messages.read_next_message()
        except StopIteration:
            return


def _compressed(metadata: bytes) -> bool:
    """Whether the buffers of a message are compressed, and could unpack to anything.

    Two tables of the FlatBuffers format are followed: the message, and the record batch in it.
    """

    def field(table: int, number: int) -> int:
        (back,) = struct.unpack_from("<i", metadata, table)
        fields = table - back
        (length,) = struct.unpack_from("<H", metadata, fields)
        if 4 + 2 * number >= length:
            return 0
        (offset,) = struct.unpack_from("<H", metadata, fields + 4 + 2 * number)
        return table + offset if offset else 0

    (root,) = struct.unpack_from("<I", metadata, 0)
    header = field(root, 2)
    (offset,) = struct.unpack_from("<I", metadata, header)
    return field(header + offset, _COMPRESSION) != 0
