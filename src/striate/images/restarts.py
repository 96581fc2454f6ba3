"""Rewriting a JPEG without loss, with restart markers that let a part of it be decoded alone."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from striate.images.declared import INDEX_MARK, INDEX_NAME, Declared, Scan
from striate.images.huffman import (
    LONGEST_DC,
    Damaged,
    Integers,
    Steps,
    Table,
    ac_steps,
    dc_steps,
    positions,
)

MOST_BYTES = 32_000_000  # of a file: its bits are held one a byte
NARROWEST, MOST_ACROSS = 32, 32  # pixels of a tile, tiles in a row: markers cost bytes and time
FEWEST = 64  # units of a picture that is worth it
MOST_GROWTH = 1.25
MOST_LISTED = 32_000  # tiles: a segment of the header holds no more
Bits = npt.NDArray[np.uint8]


@dataclass
class Header:
    """The segments of a JPEG before its coded data, and what they say of the codes.

    parts: for each component in the scan, its blocks in a unit, and its DC and AC tables.
    """

    segments: list[tuple[int, bytes]] = field(default_factory=list)
    tables: dict[tuple[int, int], Table] = field(default_factory=dict)  # (0 DC or 1 AC, number)
    parts: list[tuple[int, int, int]] = field(default_factory=list)

    def joined(self, restart: int, tables: dict[tuple[int, int], Table], lengths: list[int]) -> bytes:
        """The header with other tables, a restart interval, and the list of the bytes of each tile."""
        pieces = [b"\xff\xd8"]
        for marker, content in self.segments:
            if marker == 0xDA:
                if tables != self.tables:
                    each = (bytes([c << 4 | n]) + t.counts + t.symbols for (c, n), t in tables.items())
                    pieces.append(_segment(0xC4, b"".join(each)))
                pieces.append(_segment(0xDD, struct.pack(">H", restart)))
                if len(lengths) <= MOST_LISTED and max(lengths) < 1 << 16:
                    numbers = np.array(lengths, ">u2").tobytes()
                    pieces.append(_segment(INDEX_MARK, INDEX_NAME + numbers))
            listed = marker == INDEX_MARK and content.startswith(INDEX_NAME)
            if not (marker == 0xDD or listed or (marker == 0xC4 and tables != self.tables)):
                pieces.append(_segment(marker, content))
        return b"".join(pieces)


def interval(across: int, columns: int) -> int:
    """The units between two markers of a picture `across` units of so many pixels wide: a tile of a row.

    The narrowest piece that divides the row, within the bounds above; where none does, one unit, or the row
    if that is long.
    """
    least = max(-(-NARROWEST // columns), -(-across // MOST_ACROSS))
    fitting = [n for n in range(least, across // 3 + 1) if across % n == 0]
    if fitting:
        return fitting[0]
    return 1 if across <= 2 * MOST_ACROSS and columns >= 16 else across


def with_restarts(data: bytes, info: Declared) -> bytes:
    """The same picture, coefficient for coefficient, with restart markers.

    `data` itself where it has them, where the picture is small, and where the file would grow by a quarter.
    Only the first DC codes of each tile change. Metadata and what follows the picture are kept. A segment of
    the header lists where tiles end.

    Raises:
        Damaged: a file that this cannot rewrite; the text is the reason.
    """
    scan = info.scan
    if scan is None or info.cmyk:
        raise Damaged("four colours" if info.cmyk else "progressive, or of several scans")
    if len(data) > MOST_BYTES:
        raise Damaged(f"larger than {MOST_BYTES:,} bytes")
    across, down = -(-info.width // scan.columns), -(-info.height // scan.lines)
    wanted = interval(across, scan.columns)
    listed = scan.index[1] or across * down > MOST_LISTED * wanted
    if (scan.restart == wanted and listed) or across * down < FEWEST:
        return data
    try:
        header = _header(data, scan)
        coded, starts, end = _coded(data, scan)
        codes = _Codes(header, coded, starts, across * down, scan.restart)
        tables = codes.tables_for(wanted)
    except (IndexError, KeyError, struct.error) as error:
        raise Damaged("its headers are broken") from error
    tiles = codes.written(wanted, tables)
    new = header.joined(wanted, tables, list(map(len, tiles))) + b"".join(tiles) + data[end:]
    return new if len(new) <= MOST_GROWTH * len(data) else data


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _header(data: bytes, scan: Scan) -> Header:
    header, place, sampling = Header(), 2, {}
    while place < scan.at:
        if data[place] != 0xFF:
            raise Damaged("bytes between its segments")
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        (length,) = struct.unpack_from(">H", data, place + 2)
        content = data[place + 4 : place + 2 + length]
        place += 2 + length
        header.segments.append((marker, content))
        if marker == 0xC4:
            _read_tables(content, header.tables)
        elif marker in (0xC0, 0xC1):
            sampling = {content[6 + 3 * i]: content[7 + 3 * i] for i in range(content[5])}
        elif marker == 0xDA:
            count = content[0]
            for i in range(count):
                part, chosen = content[1 + 2 * i], content[2 + 2 * i]
                size = sampling[part]
                blocks = 1 if count == 1 else (size >> 4) * (size & 15)
                header.parts.append((blocks, chosen >> 4, chosen & 15))
    return header


def _read_tables(content: bytes, tables: dict[tuple[int, int], Table]) -> None:
    place = 0
    while place < len(content):
        kind, counts = content[place], content[place + 1 : place + 17]
        place += 17
        total = sum(counts)
        tables[kind >> 4, kind & 15] = Table(counts, content[place : place + total])
        place += total


def _coded(data: bytes, scan: Scan) -> tuple[npt.NDArray[np.uint8], list[int], int]:
    """The coded bytes without stuffing and markers, where each interval begins, the end in the file."""
    raw = np.frombuffer(data, np.uint8)[scan.at :]
    fills = np.flatnonzero(raw[:-1] == 0xFF)
    after = raw[fills + 1]
    ends = fills[(after != 0) & ((after & 0xF8) != 0xD0)]
    if not len(ends) or raw[ends[0] + 1] != 0xD9:
        raise Damaged("the codes are not followed by the end mark")
    end = int(ends[0])
    fills, after = fills[fills < end], after[fills < end]
    kept = np.ones(end, np.bool_)
    kept[fills + 1] = False
    marks = fills[after != 0]
    kept[marks] = False
    places = np.cumsum(kept)
    return raw[:end][kept], [0, *places[marks].tolist()], scan.at + end + 2


class _Codes:
    """Where the blocks of a picture lie in its bits, and the value of each DC coefficient.

    begins, at: (units, blocks of a unit), where each block begins, and its AC codes; stops: (units,), where
    each unit ends; dc: (units, blocks), the value itself; resets: the units at which values start from 0.
    """

    def __init__(
        self, header: Header, coded: npt.NDArray[np.uint8], starts: list[int], units: int, restart: int
    ) -> None:
        self.parts = header.parts
        self.tables = header.tables
        self.bits: Bits = np.unpackbits(coded)
        try:
            blocks: list[Steps] = [
                (dc_steps(header.tables[0, dc])[0], *ac_steps(header.tables[1, ac]))
                for count, dc, ac in header.parts
                for _ in range(count)
            ]
        except KeyError:
            raise Damaged("a table of codes is missing") from None
        padded = np.concatenate([coded, np.zeros(8, np.uint8)]).astype(np.uint32)
        self.words = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
        self.units = units
        step = restart or units
        self.resets = np.arange(0, units, step)
        if len(starts) < len(self.resets):
            raise Damaged("restart markers are missing")
        found: list[int] = []
        last: list[int] = []
        limits = [*starts[1 : len(self.resets)], len(coded)]
        view = memoryview(self.words.data)
        for first, begin, limit in zip(self.resets.tolist(), starts, limits, strict=False):
            last.append(positions(view, 8 * begin, min(step, units - first), blocks, found))
            if not 8 * limit - 8 < last[-1] <= 8 * limit:
                raise Damaged("the codes do not end where the picture does")
        self.begins = np.array(found, np.int64).reshape(units, len(blocks))
        self.stops = np.append(self.begins[1:, 0], last[-1])
        self.stops[np.append(self.resets[1:], units) - 1] = last
        self.at, self.dc = self._values()

    def _values(self) -> tuple[Integers, Integers]:
        """Where AC codes begin, and the DC values: differences, summed over each part from reset to reset."""
        at, dc = np.empty_like(self.begins), np.empty_like(self.begins)
        block = 0
        for count, table, _ in self.parts:
            mine = slice(block, block + count)
            block += count
            _, bits, size = dc_steps(self.tables[0, table])
            begins = self.begins[:, mine]
            window = self._window(begins)
            lengths, sizes = bits[window], size[window]
            value = self._window(begins + lengths) >> 16 - sizes
            difference = np.where(value < 1 << sizes >> 1, value - (1 << sizes) + 1, value)
            summed = np.cumsum(difference.ravel()).reshape(difference.shape)
            before = summed[:, 0] - difference[:, 0]
            reset = self.resets[np.searchsorted(self.resets, np.arange(self.units), "right") - 1]
            dc[:, mine] = summed - before[reset][:, None]
            at[:, mine] = begins + lengths + sizes
        return at, dc

    def _window(self, places: Integers) -> Integers:
        found: Integers = (self.words[places >> 3].astype(np.int64) >> 8 - (places & 7)) & 0xFFFF
        return found

    def _differences(self, restart: int) -> tuple[Integers, list[Integers]]:
        """The units where codes change, and there the new DC differences of each part's first block.

        These are the new beginnings, where values stand for themselves, and the old ones, where no more.
        """
        units = np.union1d(np.arange(0, self.units, restart), self.resets)
        found, block = [], 0
        for count, *_ in self.parts:
            before = np.where(units % restart == 0, 0, self.dc[units - 1, block + count - 1])
            found.append(self.dc[units, block] - before)
            block += count
        return units, found

    def tables_for(self, restart: int) -> dict[tuple[int, int], Table]:
        """The tables with codes for all new differences."""
        tables = dict(self.tables)
        for (_, number, _), values in zip(self.parts, self._differences(restart)[1], strict=True):
            sizes = {int(value).bit_length() for value in set(np.abs(values).tolist())}
            if max(sizes) > LONGEST_DC:
                raise Damaged("a DC value beyond the range")
            tables[0, number] = tables[0, number].with_symbols(sizes)
        return tables

    def written(self, restart: int, tables: dict[tuple[int, int], Table]) -> list[bytes]:
        """The coded data of each `restart` units with the marker after them; the last with the end mark."""
        units, differences = self._differences(restart)
        firsts = np.cumsum([0, *(count for count, *_ in self.parts)])[:-1]
        stops = self.stops[np.append(units[1:], self.units) - 1].tolist()
        begins, ats = self.begins[units][:, firsts], self.at[units][:, firsts]
        ones = np.ones(8, np.uint8)
        known: dict[tuple[int, int], Bits] = {}
        pieces: list[Bits] = []
        ends: list[int] = []
        total = 0
        for i, (unit, stop) in enumerate(zip(units.tolist(), stops, strict=True)):
            if unit % restart == 0 and unit:
                pieces.append(ones[: -total % 8])
                total += -total % 8
                ends.append(total // 8)
            edges = [*begins[i, 1:].tolist(), stop]
            for (_, number, _), values, at, edge in zip(
                self.parts, differences, ats[i].tolist(), edges, strict=True
            ):
                key = (number, int(values[i]))
                if key not in known:
                    known[key] = _dc_bits(tables[0, number], key[1])
                pieces += [known[key], self.bits[at:edge]]
                total += len(known[key]) + edge - at
        pieces.append(ones[: -total % 8])
        packed = np.packbits(np.concatenate(pieces)).tobytes()
        tiles = [
            packed[begin:end].replace(b"\xff", b"\xff\x00")
            for begin, end in zip([0, *ends], [*ends, len(packed)], strict=True)
        ]
        marks = [bytes([0xFF, 0xD0 + i % 8]) for i in range(len(tiles) - 1)]
        return [tile + mark for tile, mark in zip(tiles, [*marks, b"\xff\xd9"], strict=True)]


def _dc_bits(table: Table, value: int) -> Bits:
    """Code and difference (F.1.2.1)."""
    size = abs(value).bit_length()
    code, length = table.codes[size]
    low = value if value >= 0 else value + (1 << size) - 1
    whole = code << size | low
    return np.array([whole >> i & 1 for i in reversed(range(length + size))], np.uint8)
