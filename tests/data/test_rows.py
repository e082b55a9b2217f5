import pytest
import torch

from tptt.data import pack_rows


@pytest.mark.parametrize(("tokens", "length", "rows"), [(21, 7, 3), (27, 7, 3), (7, 7, 1), (5, 1, 5)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_hold_the_stream_and_drop_the_remainder(tokens, length, rows, dtype):
    stream = torch.arange(tokens, dtype=dtype)
    packed = pack_rows(stream, length)
    assert packed.shape == (rows, length) and packed.dtype == torch.long
    assert packed.flatten().tolist() == stream[: rows * length].tolist()


def test_errors():
    with pytest.raises(ValueError, match="has 3 tokens, one row needs 7"):
        pack_rows(torch.arange(3), 7)
    with pytest.raises(ValueError, match="1 token or more, not 0"):
        pack_rows(torch.arange(3), 0)
