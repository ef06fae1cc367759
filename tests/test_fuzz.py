"""The fuzzers' entry points on their seeds and on damage to them; long runs are ``bench/fuzz.py`` and atheris."""

from __future__ import annotations

import fuzz_targets
import numpy as np
import pytest


@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
def test_seeds_and_their_neighbours_do_no_harm(target: str) -> None:
    rng = np.random.default_rng(0)
    call = fuzz_targets.TARGETS[target]
    for seed in fuzz_targets.seeds(target):
        call(seed)
        broken = bytearray(seed)
        for _ in range(2):
            if broken:
                broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
        call(bytes(broken))
        call(seed[: rng.integers(len(seed) + 1)])


def test_the_targets_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    (good, *_) = (s for s in fuzz_targets.seeds("payload") if fuzz_targets.fast_reason(s) is None)
    monkeypatch.setattr(fuzz_targets, "oracle_reason", lambda _: "symbol-check")
    with pytest.raises(AssertionError, match="oracle"):
        fuzz_targets.payload(good)
