"""The score of a translation run is sacrebleu's, the bootstrap too, and what is shown of the rows.

Outputs are the shipped references with words missing, so that every figure moves.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from ftjob.config.groups import DatasetConfig
from ftjob.tasks.base import Row, Summary, error_record, skip_record
from ftjob.tasks.bleu import Counts
from ftjob.tasks.rows import RowSource
from ftjob.tasks.translation_score import SHOWN_LISTS, SHOWN_ROWS, Tally, metrics

DATA = DatasetConfig(task="translation", path="builtin:captions_en_de", column="source")


def outputs() -> list[tuple[str, str]]:
    """(output, reference): every third with its second word missing, some empty or doubled."""
    pairs = []
    for row in RowSource(DATA).rows():
        assert row.target is not None
        words = row.target.split()
        text = " ".join(words[:1] + words[2:]) if row.index % 3 else row.target
        pairs.append(("" if row.index == 7 else text * 2 if row.index == 8 else text, row.target))
    return pairs


def samples(**more: Any) -> list[dict[str, Any]]:
    return [
        {
            "index": i,
            "line": i + 1,
            "input": f"source {i}",
            "target": reference,
            "output": output,
            "error": None,
            "finish_reason": "length" if i % 4 == 3 else "eos",
            "tokens": 5 + i % 30,
            "output_tokens": 2,
            **more,
        }
        for i, (output, reference) in enumerate(outputs())
    ]


def summary(records: list[dict[str, Any]], scored: bool = True) -> Summary:
    tally = Tally(scored)
    for record in records:
        tally.add(record)
    return tally.summary()


@pytest.mark.parametrize(
    ("name", "metric"), [("bleu", BLEU()), ("chrf", CHRF())], ids=["bleu", "chrf"]
)
def test_figures_signature_and_interval_are_sacrebleus(name: str, metric: Any) -> None:
    found = summary(samples())
    texts, references = zip(*outputs(), strict=True)
    plain = type(metric)()
    assert found.values[name] == plain.corpus_score(list(texts), [list(references)]).score
    assert found.signatures[name] == str(plain.get_signature())
    assert "version:" in found.signatures[name]
    theirs = metric.corpus_score(list(texts), [list(references)], n_bootstrap=1000)
    low, high = found.intervals[name]
    assert (high - low) / 2 == pytest.approx(theirs._ci, abs=1e-4)
    assert low < theirs._mean < high
    assert low < found.values[name] < high
    assert found.stderrs[name] == pytest.approx((high - low) / 4, rel=0.15)


def test_equal_records_give_equal_scores() -> None:
    assert summary(samples()) == summary(samples())


def test_a_thousand_resamples_of_3000_rows_are_quick() -> None:
    counts = Counts()
    for output, reference in outputs() * 49:
        counts.add(output, reference)
    start = time.monotonic()
    first = counts.bleu()
    assert time.monotonic() - start < 2
    assert counts.bleu() == first


def test_other_figures_by_hand() -> None:
    found = summary(samples())
    metric = BLEU()
    texts, references = zip(*outputs(), strict=True)
    theirs = metric.corpus_score(list(texts), [list(references)])
    assert found.values["length_ratio"] == theirs.sys_len / theirs.ref_len
    assert found.values["eos_rate"] == 47 / 62
    assert found.values["output_tokens"] == 124
    assert set(found.values) == set(metrics(True))
    assert set(found.values) - set(found.intervals) == {"length_ratio", "eos_rate", "output_tokens"}


def test_without_references_there_is_no_score() -> None:
    found = summary(samples(target=None), scored=False)
    assert set(found.values) == set(metrics(False)) == {"eos_rate", "output_tokens"}
    assert (found.charts, found.tables, found.intervals) == ([], [], {})


def test_rows_without_an_answer_do_not_count_but_are_told() -> None:
    row = Row(99, 100, b"", "a b", target="c d")
    others = [
        error_record(row, "k", "line 100: bad"),
        skip_record(row, "k", "line 100: long"),
        skip_record(row, "k", "line 100: long"),
    ]
    plain, found = summary(samples()), summary(samples() + others)
    assert found.values == plain.values
    assert plain.notes == []
    assert found.notes == [
        "2 rows were too long and left out (dataset.too_long=skip): they are in samples.jsonl and "
        "in no score."
    ]
    cut = summary([samples()[0] | {"cut_tokens": 3}, samples()[1]])
    assert cut.notes == [
        "1 row was too long: the end of the source was cut off (dataset.too_long=truncate)."
    ]
    assert summary(others).values == {}
    assert summary([]).notes == []


def test_one_row_has_a_score() -> None:
    found = summary(samples()[:1])
    assert found.values["bleu"] == pytest.approx(100)
    assert (found.stderrs["bleu"], found.stderrs.get("eos_rate")) == (0, None)


def test_best_and_worst_are_shown_side_by_side() -> None:
    found = summary(samples())
    worst, best = found.tables
    chrf = CHRF()
    scores = [chrf.sentence_score(o, [r]).score for o, r in outputs()]
    ranked = sorted(range(62), key=lambda i: (scores[i], i))
    assert [cells[0] for cells in worst["rows"]] == [str(i + 1) for i in ranked[:SHOWN_ROWS]]
    assert worst["rows"][0] == ["8", "0.0", "source 7", outputs()[7][1], ""]
    assert [cells[1] for cells in best["rows"]] == ["100.0"] * SHOWN_ROWS
    assert [cells[0] for cells in best["rows"]] == [str(i + 1) for i in range(0, 27, 3)][
        :SHOWN_ROWS
    ]


def test_chart_bins_by_source_length() -> None:
    (chart,) = summary(samples()).charts
    assert [p["label"] for p in chart["points"]] == ["0-9", "10-19", "20-29", "30-39"]
    assert sum(p["count"] for p in chart["points"]) == 62
    chrf = CHRF()
    scores = [
        chrf.sentence_score(o, [r]).score for i, (o, r) in enumerate(outputs()) if 5 + i % 30 < 10
    ]
    assert chart["points"][0]["value"] == pytest.approx(sum(scores) / len(scores))


def test_lists_of_a_few_rows_are_shown() -> None:
    hypotheses = [{"output": f"o{i}", "score": -1.0 - i} for i in range(3)]
    table = summary(samples(hypotheses=hypotheses)).tables[-1]
    assert len(table["rows"]) == 3 * SHOWN_LISTS
    assert table["rows"][4] == ["2", "2", "-2.0000", "o1"]
