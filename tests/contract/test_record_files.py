"""RecordFiles: small files, whole or not at all."""

import pytest
from tests.contract.beds import Bed

from aoe_core.errors import CommandFailed


def test_an_empty_store_has_no_records(bed: Bed) -> None:
    assert bed.records().read_all() == {}


def test_a_record_is_read_back_as_written(bed: Bed) -> None:
    bed.records().write("10.3", "STATE=live\nNAME=ä\n")
    bed.records().write("local.v-1", "")
    assert bed.records().read_all() == {"10.3": "STATE=live\nNAME=ä\n", "local.v-1": ""}


def test_a_second_write_replaces_the_record_whole(bed: Bed) -> None:
    records = bed.records()
    records.write("10.3", "a long text\n" * 100)
    records.write("10.3", "short")
    assert records.read_all() == {"10.3": "short"}


def test_removing_takes_one_record_and_only_that(bed: Bed) -> None:
    records = bed.records()
    records.write("10.3", "one")
    records.write("10.30", "other")
    records.remove("10.3")
    assert records.read_all() == {"10.30": "other"}


def test_removing_what_is_absent_is_no_error(bed: Bed) -> None:
    records = bed.records()
    records.remove("10.3")
    records.write("10.4", "kept")
    records.remove("10.3")
    assert records.read_all() == {"10.4": "kept"}


def test_what_a_write_cut_short_left_behind_is_no_record(bed: Bed) -> None:
    bed.records().write("10.3", "whole")
    bed.leave_temporary("10.3")
    bed.leave_temporary("10.4")
    assert bed.records().read_all() == {"10.3": "whole"}
    bed.records().write("10.4", "whole too")
    assert bed.records().read_all() == {"10.3": "whole", "10.4": "whole too"}


@pytest.mark.parametrize("name", ["", ".hidden", "../out", "a/b", "x" * 128])
def test_a_name_that_leads_elsewhere_is_refused(bed: Bed, name: str) -> None:
    with pytest.raises(CommandFailed):
        bed.records().write(name, "text")
    assert bed.records().read_all() == {}
