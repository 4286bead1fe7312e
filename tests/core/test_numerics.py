"""Which library multiplies matrices: chosen by the number of rows, put back afterwards."""

import pytest
import torch

from offdiff.core.numerics import FEW_ROWS, products_of


@pytest.fixture
def onednn() -> None:
    torch.set_float32_matmul_precision("medium")


@pytest.mark.usefixtures("onednn")
def test_few_rows_go_to_the_default_library_and_many_do_not() -> None:
    with products_of(FEW_ROWS):
        assert torch.get_float32_matmul_precision() == "highest"
        with products_of(FEW_ROWS + 1):
            assert torch.get_float32_matmul_precision() == "highest", "within few it stays so"
    assert torch.get_float32_matmul_precision() == "medium"
    with products_of(FEW_ROWS + 1):
        assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.usefixtures("onednn")
def test_the_library_before_is_put_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), products_of(1):
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == "medium"


def test_where_the_default_library_is_used_anyway_nothing_changes() -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    with products_of(1):
        assert torch.get_float32_matmul_precision() == "highest"
