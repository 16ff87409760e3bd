"""Sequences by the numbers in file names."""

import pytest

from drender.media.sequences import split_sequences

CASES = {
    "a matte": (["0000", "0000_mask", "0001", "0001_mask"], {"": ["0000", "0001"], "mask": ["0000_mask", "0001_mask"]}),
    "two views": (
        ["left.0", "right.0", "left.1", "right.1"], {"left": ["left.0", "left.1"], "right": ["right.0", "right.1"]},
    ),
    "numbered views": (
        ["cam1_01", "cam1_02", "cam2_01", "cam2_02"], {"cam1": ["cam1_01", "cam1_02"], "cam2": ["cam2_01", "cam2_02"]},
    ),
    "one frame of each view": (["cam1.0001", "cam2.0001"], {"cam": ["cam1.0001", "cam2.0001"]}),
    "signs": (["p.-002", "p.-001", "p.000", "p.001"], {"p": ["p.-002", "p.-001", "p.000", "p.001"]}),
    "bare signs": (["-1", "-2", "0", "1"], {"": ["-2", "-1", "0", "1"]}),
    "hyphens": (["shot-002", "shot-001"], {"shot": ["shot-001", "shot-002"]}),
    "decimals": (["f_0.5", "f_0.25", "f_1.75", "f_1.0"], {"f": ["f_0.25", "f_0.5", "f_1.0", "f_1.75"]}),
    "padded decimals": (["0.00", "0.50", "1.00", "1.50"], {"": ["0.00", "0.50", "1.00", "1.50"]}),
    "no decimals": (["clip1.8", "clip1.9", "clip1.10"], {"clip": ["clip1.8", "clip1.9", "clip1.10"]}),
    "seconds": (["13.175304", "13.2", "14.5"], {"": ["13.175304", "13.2", "14.5"]}),
    "dates": (
        ["2024-01-05 12.30.45", "2024-02-06 11.02.09", "2025-01-01 01.02.03"],
        {"": ["2024-01-05 12.30.45", "2024-02-06 11.02.09", "2025-01-01 01.02.03"]},
    ),
    "a version": (["a_v2.1001", "a_v2.1002"], {"a_v": ["a_v2.1001", "a_v2.1002"]}),
    "stills": (["chair", "lamp"], {"chair": ["chair"], "lamp": ["lamp"]}),
    "a poster": (["a1", "a2", "poster"], {"a": ["a1", "a2"], "poster": ["poster"]}),
    "the released layout": (["0000.0000", "0000.0001", "0001.0000"], {"": ["0000.0000", "0000.0001", "0001.0000"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_names_tell_sequences_and_their_order(case):
    stems, expected = CASES[case]
    assert {sequence.name: [*sequence.stems] for sequence in split_sequences(stems)} == expected


@pytest.mark.parametrize(
    ("numbers", "gaps"),
    [
        ((1, 2, 3, 6, 7, 9), ((4, 5), (8, 8))),
        ((-2, -1, 2), ((0, 1),)),
        ((1001, 1003, 1005, 1009), ((1007, 1007),)),  # on twos
        ((10, 20, 30), ()),
        ((5, 100), ()),
        ((3, 17, 90, 91, 250), ()),  # no spacing
    ],
)
def test_gaps_of_equally_spaced_frames(numbers, gaps):
    (sequence,) = split_sequences([f"p.{number}" for number in numbers])
    assert sequence.gaps == gaps


def test_gaps_within_chunks_of_the_released_layout():
    (sequence,) = split_sequences(["0000.0000", "0000.0001", "0000.0002", "0001.0000", "0001.0001", "0001.0004"])
    assert sequence.gaps == ((2, 3),)
