"""Who shares cores with whom, and the remark on a launcher that binds ranks to few of them."""

from __future__ import annotations

from ftjob.launch.ranks import bound_ranks, sharing
from ftjob.link import Hello


def ranks(*cores: tuple[str, range]) -> list[Hello]:
    return [Hello(host, 0, None, frozenset(mine), 16) for host, mine in cores]


def test_ranks_of_a_host_share_its_cores() -> None:
    free = ranks(("a", range(16)), ("a", range(16)), ("b", range(16)))
    assert sharing(free, [2, 1, 4]) == (3, 3, 4)


def test_bound_ranks_share_only_where_they_meet() -> None:
    bound = ranks(("a", range(0, 8)), ("a", range(8, 16)), ("a", range(4, 12)))
    assert sharing(bound, [1, 2, 3]) == (4, 5, 6)


def test_a_binding_to_few_cores_is_remarked() -> None:
    assert bound_ranks(ranks(("a", range(16)), ("b", range(16)))) is None
    assert bound_ranks(ranks(("a", range(0, 5)), ("a", range(5, 10)))) is None
    remark = bound_ranks(ranks(("a", range(16)), ("b", range(1)), ("b", range(1, 2))))
    assert remark is not None
    assert "on b (1, 2) may use 2 of its 16 cores" in remark
    assert "--bind-to none" in remark
