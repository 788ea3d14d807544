import pytest

from lilliput.errors import ConfigError
from lilliput.evidence import Budget, Cost


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("16KB", 16384),
        ("256 KiB", 262144),
        ("1.5MB", 1572864),
        ("1,024", 1024),
        ("2_000B", 2000),
        (512, 512),
        ("1GB", 2**30),
    ],
)
def test_sizes_are_powers_of_1024_as_on_a_data_sheet(text, size_bytes):
    assert Budget.parse(text) == size_bytes


@pytest.mark.parametrize("text", ["", "KB", "16 apples", "-16KB", "1e3", "16KB16", "nan"])
def test_a_size_without_number_or_known_unit_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"must be a number and one of B, KB, KIB.*try '256KB'"):
        Budget.parse(text)


def test_a_fraction_of_a_byte_is_refused():
    with pytest.raises(ConfigError, match=r"size '0.3KB' is 307.2\d* and not a whole number"):
        Budget.parse("0.3KB")


def test_counts_are_powers_of_1000():
    assert (Budget.parse_count("2M"), Budget.parse_count("1.82G"), Budget.parse_count("3k")) == (
        2_000_000,
        1_820_000_000,
        3000,
    )


def test_a_ceiling_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="budget sram_bytes=0: must be above 0"):
        Budget.of(sram="0KB")


def test_a_cost_at_the_ceiling_fits_and_one_byte_more_does_not():
    budget = Budget.of(sram="16KB", macs="2M")
    assert Cost(sram_bytes=16384, macs=2_000_000, params=10**9) <= budget
    over = Cost(sram_bytes=16385, macs=2_000_001)
    assert not over <= budget
    assert over.excess(budget) == {"macs": (2_000_001, 2_000_000), "sram_bytes": (16385, 16384)}


def test_weights_of_few_bits_are_packed_and_rounded_up():
    assert [Cost(params=9, bits=bits).weight_bytes for bits in (8, 4, 3, 1)] == [9, 5, 4, 2]
