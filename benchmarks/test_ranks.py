"""The table of several processes against one says what was measured."""

from __future__ import annotations

from . import ranks


def test_the_table_holds_the_model_to_what_an_update_took_longer() -> None:
    result = {
        "minibatches": 160,
        "epochs": 10,
        "trained": {  # the median of three rounds, whatever the others are
            1: [{"sps": sps, "time/update": 0.25} for sps in (900.0, 1_000.0, 5_000.0)],
            2: [{"sps": sps, "time/update": 0.5} for sps in (1_400.0, 1_500.0, 1_600.0)],
        },
        "talked": {2: [{"sum": 1e-3, "gather": 1e-4}] * 3},
    }
    *_, alone, two = ranks.table(result).splitlines()
    assert alone == "| 1 | 1,000 | 1.00 |  |  |  |  |"
    # 1,500 of twice 1,000; 160 sums of 1 ms and 2 x 10 + 9 gathers of 0.1 ms make 162.9 ms of the 250.
    assert two == "| 2 | 1,500 | 0.75 | 1.00 | 0.10 | 250 | 163 |"
