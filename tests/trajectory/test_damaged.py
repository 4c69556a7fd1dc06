"""A record is read as far as it is whole, and what is not is said."""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_gamma import trajectory
from lit_gamma.files import AppendFile
from lit_gamma.trajectory.arrow import ArrowStream, read_batches

SCHEMA = pa.schema([("step", pa.int64()), ("matrix", pa.string()), ("value", pa.float32())])


def written(path, n_batches: int = 4) -> bytes:
    stream = ArrowStream(path, SCHEMA)
    for i in range(n_batches):
        steps = np.arange(10 * i, 10 * i + 10)
        stream.append({"step": steps, "matrix": ["m"] * 10, "value": steps / 2})
    stream.close()
    return path.read_bytes()


@pytest.mark.parametrize(("kept", "read"), [(1.0, 40), (0.99, 30), (0.5, None), (0.02, 0), (0, 0)])
def test_a_cut_file_is_read_up_to_its_last_whole_batch(tmp_path, kept, read):
    folder = tmp_path / "trajectory"
    whole = written(folder / "cut.arrow")
    written(folder / "other.arrow")
    (folder / "cut.arrow").write_bytes(whole[: int(kept * len(whole))])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tables = trajectory.load(tmp_path)
    rows = len(tables.get("cut", ()))
    assert rows == read if read is not None else rows in (10, 20)
    assert len(tables["other"]) == 40
    assert any("cut.arrow is damaged" in str(w.message) for w in said) == (kept < 1)


def test_a_stream_can_be_read_before_anything_is_appended(tmp_path):
    path = tmp_path / "t.arrow"
    ArrowStream(path, SCHEMA).close()
    assert read_batches(path) == []
    with pa.ipc.open_stream(path.read_bytes()) as reader:
        assert reader.schema == SCHEMA


def test_a_refused_first_write_leaves_no_file_and_the_next_one_a_whole_one(tmp_path, monkeypatch):
    path = tmp_path / "t.arrow"
    with monkeypatch.context() as patch:
        patch.setattr(AppendFile, "append", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            ArrowStream(path, SCHEMA)
    assert list(tmp_path.iterdir()) == []
    assert len(written(path)) > 0
    assert sum(batch.num_rows for batch in read_batches(path)) == 40


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_files_of_others_give_no_traceback(tmp_path, content):
    path = tmp_path / "foreign.arrow"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_batches(path) == []


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_a_flipped_bit_anywhere_costs_rows_and_is_said_or_changes_nothing(tmp_path, bit):
    path = tmp_path / "t.arrow"
    whole = written(path, n_batches=3)
    rows = pa.Table.from_batches(read_batches(path))
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << bit
        path.write_bytes(flipped)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            batches = read_batches(path)
        read = [batch.to_pydict() for batch in batches]
        kept = [i for i in range(3) if rows.slice(10 * i, 10).to_pydict() in read]
        assert len(kept) == len(read), at
        assert said or len(kept) == 3, at


def test_a_damaged_batch_does_not_cost_the_later_ones(tmp_path):
    path = tmp_path / "t.arrow"
    whole = written(path)
    at = whole.index(np.float32(17 / 2).tobytes())
    path.write_bytes(whole[:at] + np.float32(17.5 / 2).tobytes() + whole[at + 4 :])
    with pytest.warns(UserWarning, match="without a batch after step 9 .its checksum is wrong"):
        read = pa.Table.from_batches(read_batches(path))
    assert read["step"].to_pylist() == [*range(10), *range(20, 40)]
