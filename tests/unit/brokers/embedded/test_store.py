from __future__ import annotations

from duly.brokers.embedded.store import boot_seconds, render, whole


def test_boot_time_grows() -> None:
    assert 0 < boot_seconds() <= boot_seconds()


def test_a_statement_in_the_words_of_a_database() -> None:
    words = {"claim": "shop_broker_claim", "now": "UNIX_TIMESTAMP()"}
    text = "SELECT token FROM {claim} WHERE until > {now} AND grp = :group"
    wanted = (
        "SELECT token FROM shop_broker_claim WHERE until > UNIX_TIMESTAMP() AND grp = %(group)s"
    )
    assert render(text, words, r"%(\1)s") == wanted


def test_only_numbers_stand_in_a_list() -> None:
    assert whole([3, True, 12]) == "3,1,12"
