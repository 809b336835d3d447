"""The table of faults names tests that exist, and says the worst that they say."""

from __future__ import annotations

import re
from pathlib import Path

from tests.fault_rows import ROOT, ROWS, Row, judge, read_results


def test_every_test_of_a_row_exists() -> None:
    for row in ROWS:
        assert bool(row.tests) == bool(row.shows), row
        for test in row.tests:
            file, _, name = test.partition("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            assert not name or re.search(rf"^def {name}\(", text, re.MULTILINE), test


def test_a_row_is_as_good_as_its_worst_test(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.a.test_b" name="test_c[x]"/>'
        '<testcase classname="tests.a.test_b" name="test_c[y]"><failure/></testcase>'
        '<testcase classname="tests.a.test_b" name="test_d"><skipped/></testcase>'
        '<testcase classname="tests.a.test_b" name="test_e"/>'
        "</testsuite></testsuites>"
    )
    results = read_results(tmp_path / "report.xml")
    row = Row("1", "a fault", "Ends")
    assert judge(row, results) == "no test"
    for names, verdict in (
        (("test_c",), "failed"),
        (("test_e",), "passed"),
        (("test_d", "test_e"), "skipped"),
        (("test_e", "test_gone"), "not run"),
    ):
        tests = tuple(f"tests/a/test_b.py::{name}" for name in names)
        assert judge(row._replace(tests=tests), results) == verdict
    assert judge(row._replace(tests=("tests/a/test_b.py",)), results) == "failed"
