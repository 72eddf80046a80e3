"""Notices: said once on the log, and kept in the run that is under way."""

from __future__ import annotations

import logging

import pytest

from clipguard.notices import notice, noticing


def test_a_notice_is_a_warning_and_is_kept_once_in_the_run_under_way(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="clipguard"), noticing() as kept:
        notice("skipped", "photos: 2 files are no images")
        with noticing() as inner:  # a part of the run
            notice("skipped", "photos: 2 files are no images")
            notice("guessed", "photos: split val")
    assert kept is inner
    assert [n["text"] for n in kept] == ["photos: 2 files are no images", "photos: split val"] == caplog.messages
    with noticing() as fresh:
        assert fresh == []
